"""What a run costs in a project with 1, 100 and 1,000 runs: the walk with nothing to do, a stage commit, a push.

    python -m benchmarks.many_runs [--runs 1 100 1000] [--stages 9] [--git]

Every run was really committed (own parameters, own outputs, own entries in the shared cache); the bodies write one small
file. The large project is measured alternately with one that has a single run, so that what else the machine does falls on
both. Each reading is a fresh process; the walk's includes the imports. Prints the median seconds and their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from infra import graph
from infra.settings import Settings, environment

REPEATS = 9

_WALK = """
import sys
from pathlib import Path
from infra import graph
with graph.open_graph(Path(sys.argv[1])) as opened:
    assert not any(node.why() for node in opened.stages)
"""


def make_run(settings: Settings, number: int, stages: int) -> Path:
    """A run with a chain of stages whose parameters no other run has."""
    run = settings.runs / f"run-{number:04d}"
    run.mkdir(parents=True, exist_ok=True)
    names = [f"s{i}" for i in range(stages)]
    (run / "recipe.yaml").write_text("".join(f"{name}: {{run: {number}, lr: 0.1}}\n" for name in names))
    entries = []
    for index, name in enumerate(names):
        before = f"    deps: [outputs/s{index - 1}]\n" if index else ""
        entries.append(
            f"  {name}:\n    cmd: body {name}\n{before}    params: [{{recipe.yaml: [{name}]}}]\n    outs: [outputs/{name}]\n"
        )
    (run / "dvc.yaml").write_text("stages:\n" + "".join(entries))
    graph.create(run, settings)
    return run


def body(run: Path, stage: str, content: str) -> None:
    folder = run / "outputs" / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.txt").write_text(content)


def fill(run: Path) -> None:
    with graph.open_graph(run) as opened:
        for node in opened.stages:
            if node.why():
                body(run, node.name, f"{run.name} {node.name}")
                node.commit()


def afresh(measure: str, run: Path, settings: Settings) -> float:
    """Seconds of `commit` or `push`, measured in a process of its own: this one has the memory of all it filled."""
    own = os.environ | environment(settings)
    command = [sys.executable, __file__, "--measure", measure, str(run)]
    return float(subprocess.run(command, check=True, env=own, capture_output=True, text=True).stdout)


def walk(run: Path, settings: Settings) -> float:
    started = time.perf_counter()
    own = os.environ | environment(settings)
    subprocess.run([sys.executable, "-c", _WALK, str(run)], check=True, env=own)
    return time.perf_counter() - started


def commit(run: Path) -> float:
    with graph.open_graph(run) as opened:
        node = opened.stages[-1]
        body(run, node.name, f"changed {time.time_ns()}")
        started = time.perf_counter()
        node.commit()
        return time.perf_counter() - started


def push(run: Path) -> float:
    with graph.open_graph(run) as opened:
        node = opened.stages[-1]
        body(run, node.name, f"changed {time.time_ns()}")
        node.commit()
        started = time.perf_counter()
        opened.push()
        return time.perf_counter() - started


def project(folder: Path, git: bool) -> Settings:
    folder.mkdir()
    if git:
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        (folder / ".gitignore").write_text("/.tessera/\n")
    return Settings(project=folder, home=Path(".tessera"))


def alternately(measure: Callable[[Settings], float], small: Settings, large: Settings) -> tuple[float, float]:
    """Median seconds in the two projects; one reading of each before, which does not count."""
    found: list[tuple[float, float]] = []
    for _ in range(REPEATS + 1):
        readings = []
        for settings in (small, large):
            os.environ |= environment(settings)
            readings.append(measure(settings))
        found.append((readings[0], readings[1]))
    return statistics.median(x for x, _ in found[1:]), statistics.median(y for _, y in found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 100, 1000], help="how many runs a project has")
    parser.add_argument("--stages", type=int, default=9)
    parser.add_argument("--git", action="store_true", help="in a project under git that keeps its runs")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "RUN"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print({"commit": commit, "push": push}[asked.measure[0]](Path(asked.measure[1])))
        return
    costs: dict[str, Callable[[Settings], float]] = {
        "no-op walk": lambda settings: walk(settings.runs / "run-0000", settings),
        "stage commit": lambda settings: afresh("commit", settings.runs / "run-0000", settings),
        "push": lambda settings: afresh("push", settings.runs / "run-0000", settings),
    }
    with tempfile.TemporaryDirectory() as folder:
        small, large = (project(Path(folder) / name, asked.git) for name in ("small", "large"))
        os.environ |= environment(small)
        fill(make_run(small, 0, asked.stages))
        done = 0
        print(f"{'runs':>6}  {'cost':<13} {'1 run':>9} {'this many':>10} {'ratio':>6}")
        for runs in sorted(asked.runs):
            os.environ |= environment(large)
            for number in range(done, runs):
                fill(make_run(large, number, asked.stages))
            done = runs
            for name, measure in costs.items():
                one, many = alternately(measure, small, large)
                print(f"{runs:>6}  {name:<13} {one:>7.3f} s {many:>8.3f} s {many / one:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
