"""What orchestration costs: everything of a run that is not a stage body computing.

    python -m benchmarks.overhead job     the quickstart, cold and with `tessera up`: body time and overhead per stage, and
                                          the peak memory of all processes together (summed PSS)
    python -m benchmarks.overhead noops   a pipeline of stages that do nothing, through Tessera and through what people use
                                          instead: the same bodies in plain Python, as a plain Prefect flow, with `dvc repro`

Each works in a fresh project of its own in a temporary folder and ends what it started.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import runs
from infra import services, supervisor
from infra.settings import Settings, environment

ROOT = runs.package_root()
STAGES = runs.stage_names(ROOT)
_LINE = re.compile(r"^\s+(\w+)\s+done\s+([\d.]+) s")


class Memory:
    """Peak summed PSS of this process's children and of a project's services, sampled twice a second."""

    def __init__(self, home: Path) -> None:
        self.home, self.peak = home, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            found = {*supervisor.marked(self.home), *_children(os.getpid())}
            self.peak = max(self.peak, sum(_pss(pid) for pid in found))


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | _children(child)
    return found


def _pss(pid: int) -> int:
    """Bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@contextmanager
def project(source: Path = ROOT) -> Iterator[tuple[Settings, dict[str, str]]]:
    """A fresh project and the environment of its commands; ends its services."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        runs.init_project(root)
        settings = Settings(project=root, home=Path(".tessera"))
        own = {k: v for k, v in os.environ.items() if not k.startswith("TESSERA_")} | environment(settings)
        own["PYTHONPATH"] = os.pathsep.join([str(source), str(root)])
        try:
            yield settings, own
        finally:
            services.down(settings)


def tessera(own: dict[str, str], *arguments: str) -> tuple[float, str]:
    """Seconds and output of a command."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, env=own, cwd=own["TESSERA_PROJECT"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.perf_counter() - started, done.stdout


def bodies(settings: Settings, run: str) -> dict[str, float]:
    """Seconds of each stage's body in a run, from its lineage events."""
    found = {}
    for path in (settings.runs / run / "events").glob("*.json"):
        event = json.loads(path.read_text())
        found[event["job"]["name"]] = event["run"]["facets"]["tessera"]["seconds"]
    return found


def job(recipe: str, overrides: list[str]) -> None:
    changes = [part for change in overrides for part in ("--set", change)]
    with project() as (settings, own):
        for title, before, seed in (("cold", (), 0), ("with `tessera up`", ("up",), 1)):
            if before:
                seconds, _ = tessera(own, *before)
                print(f"\n`tessera up` {seconds:.1f} s")
            with Memory(settings.home) as memory:
                seconds, said = tessera(own, "run", recipe, "--name", f"job-{seed}", "--set", f"seed={seed}", *changes)
            steps = {match[1]: float(match[2]) for line in said.splitlines() if (match := _LINE.match(line))}
            body = bodies(settings, f"job-{seed}")
            print(f"{title}\n{'stage':<14} {'body':>8} {'overhead':>9}")
            for stage in steps:
                print(f"{stage:<14} {body[stage]:>6.1f} s {steps[stage] - body[stage]:>7.1f} s")
            computing = sum(body.values())
            print(f"{'all':<14} {computing:>6.1f} s {seconds - computing:>7.1f} s   wall {seconds:.1f} s")
            print(f"peak memory of all processes (PSS) {memory.peak / 2**30:.2f} GB")
            seconds, _ = tessera(own, "run", recipe, "--name", f"job-{seed}", "--set", f"seed={seed}", *changes)
            print(f"the same command again {seconds:.2f} s", flush=True)


_BODY = """from __future__ import annotations

from prefect import flow

from flows.pipeline import label, walk
from flows.request import Request


def body(ctx):
    (ctx.output / "x.txt").write_text(ctx.stage)
    ctx.log(0, {"loss": 0.0})
    return {"done": 1.0}


@flow(name="STAGE", flow_run_name=label)
def STAGE(request: Request) -> dict[str, dict[str, float]]:
    return walk(request, until="STAGE")
"""

_SCRIPT = """import json, pathlib, sys
def body(stage):
    for folder in (f"outputs/{stage}", "metrics"):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    pathlib.Path(f"outputs/{stage}/x.txt").write_text(stage)
    pathlib.Path(f"metrics/{stage}.json").write_text(json.dumps({"done": 1.0}))
if __name__ == "__main__":
    for stage in sys.argv[1:]:
        body(stage)
"""

_PREFECT = """import sys
from prefect import flow, task
from body import body
@flow
def pipeline(stages: list[str]) -> None:
    for stage in stages:
        task(body, name=stage)(stage)
pipeline(sys.argv[1:])
"""


def noops() -> None:
    rows: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for package in ("components", "flows", "infra", "tessera", "recipes"):
            shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", "prefect.yaml"):
            shutil.copy(ROOT / name, source)
        for stage in STAGES:
            (source / "flows" / f"{stage}.py").write_text(_BODY.replace("STAGE", stage))
        with project(source) as (settings, own):
            plain = Path(folder) / "plain"
            plain.mkdir()
            (plain / "body.py").write_text(_SCRIPT)
            (plain / "flow.py").write_text(_PREFECT)

            def timed(what: str, *command: str, **more: str) -> None:
                started = time.perf_counter()
                done = subprocess.run(command, cwd=plain, env=own | more, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{what}: {done.stderr[-3000:]}")
                rows.append((what, time.perf_counter() - started))

            changes = ["--set", "gates=[]", "--name", "noops"]
            timed("plain Python", sys.executable, "body.py", *STAGES)
            home = {"PREFECT_HOME": str(plain / "prefect"), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
            timed("Prefect flow, its own server", sys.executable, "flow.py", *STAGES, **home)
            _dvc_project(plain)
            timed("dvc repro", sys.executable, "-m", "dvc", "repro")
            timed("dvc repro again", sys.executable, "-m", "dvc", "repro")
            rows.append(("tessera run, cold", tessera(own, "run", "quickstart", *changes)[0]))
            rows.append(("tessera run again", tessera(own, "run", "quickstart", *changes)[0]))
            tessera(own, "up")
            api = services.addresses(settings).prefect or ""
            timed("Prefect flow, server up", sys.executable, "flow.py", *STAGES, PREFECT_API_URL=api)
            changes[-1] = "noops-up"
            rows.append(("tessera run, services up", tessera(own, "run", "quickstart", "--set", "seed=1", *changes)[0]))
    print(f"{len(STAGES)} stages that do nothing")
    for what, seconds in rows:
        print(f"{what:<30} {seconds:>7.2f} s   {seconds / len(STAGES):>6.2f} s a stage")


def _dvc_project(folder: Path) -> None:
    """The same graph as DVC's users write it."""
    stages = {}
    before: list[str] = []
    for stage in STAGES:
        stages[stage] = {
            "cmd": f"{sys.executable} body.py {stage}",
            "deps": before,
            "outs": [f"outputs/{stage}"],
            "metrics": [f"metrics/{stage}.json"],
        }
        before = [f"outputs/{stage}"]
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["job", "noops"])
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", dest="overrides", metavar="K=V", action="append", default=[])
    asked = parser.parse_args()
    if asked.what == "job":
        job(asked.recipe, asked.overrides)
    else:
        noops()


if __name__ == "__main__":
    main()
