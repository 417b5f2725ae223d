"""A project with the quickstart recipe, reduced to a few seconds a stage and driven by the real commands.

Every start and end of a stage body is counted from outside, by an audit hook in the project's `sitecustomize.py`: whatever
process the body runs in makes `work/<stage>/output` first, and moves it into place last."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components import yamlio
from flows import runs
from infra import graph
from infra.settings import Settings
from infra.tracking import Tracking

ROOT = Path(__file__).resolve().parent.parent
STAGES = (
    "dataset", "mixture", "networks", "tokenizer", "tokens", "generator", "posttraining", "evaluation", "registration",
)  # fmt: skip

REDUCED: dict[str, object] = {
    "dataset.source.characters": "0123456789ABC",
    "dataset.source.variants": 1,
    "mixture.problem.clustering.fine": 20,
    "mixture.problem.clustering.most": 3,
    "mixture.rounds": "[4,2]",
    "mixture.candidates": 200,
    "mixture.compare": "false",
    "networks.reward.width": 8,
    "networks.reward.train.steps": 6,
    "networks.reward.train.batch_size": 32,
    "networks.judge.width": 8,
    "networks.judge.train.steps": 6,
    "networks.judge.train.batch_size": 32,
    "tokenizer.width": 8,
    "tokenizer.train.steps": 8,
    "tokenizer.train.batch_size": 32,
    "generator.backbone.depth": 1,
    "generator.backbone.width": 32,
    "generator.train.steps": 10,
    "generator.train.batch_size": 32,
    "posttraining.train.steps": 2,
    "posttraining.train.batch_size": 32,
    "evaluation.samples": 100,
    "gates": "[]",
}
#: the sections that can be left out are; what remains is a dataset, a tokenizer, tokens, a generator and a model
SMALLEST: dict[str, object] = {
    **{name: value for name, value in REDUCED.items() if not name.startswith(("mixture", "networks", "posttraining"))},
    "mixture": "null",
    "networks": "{}",
    "posttraining": "null",
    "evaluation.metrics": "[{type: psnr}]",
}

_COUNTER = r"""
import os, re, sys

_LOG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bodies.log")
_OUTPUT = re.compile(r"/runs/([^/]+)/work/([^/]+)/output$")

def _note(event, arguments):
    if event in ("os.mkdir", "os.rename"):
        path = os.fspath(arguments[0])
        found = isinstance(path, str) and _OUTPUT.search(path)
        new = event == "os.rename" or os.path.isdir(os.path.dirname(path)) and not os.path.exists(path)
        if found and new:
            what = "started" if event == "os.mkdir" else "ended"
            with open(_LOG, "a") as log:
                log.write(f"{what} {found[1]} {found[2]}\n")

sys.addaudithook(_note)
"""


def make(folder: Path, *, git: bool = False, **options: Any) -> Settings:
    """A new project, with git if asked for; its runs are versioned, its caches are not."""
    runs.init_project(folder)
    (folder / "sitecustomize.py").write_text(_COUNTER)
    with open(folder / ".gitignore", "a") as ignored:
        ignored.write("/bodies.log\n")
    if git:
        in_git(folder, "init", "-q")
        commit(folder)
    return Settings(project=folder, **options)


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A real file system of this size (`64m`), mounted there."""
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def in_git(folder: Path, *arguments: str) -> None:
    person = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost"]
    subprocess.run(["git", *person, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path) -> None:
    in_git(folder, "add", "-A")
    in_git(folder, "commit", "-q", "-m", "as it is")


def sets(changes: dict[str, object] | None = None, base: dict[str, object] = REDUCED) -> list[str]:
    """The options of `tessera run` for the reduced recipe with some changes."""
    return [text for name, value in {**base, **(changes or {})}.items() for text in ("--set", f"{name}={value}")]


def variables(settings: Settings) -> dict[str, str]:
    """The environment of a person who stands in the project."""
    ours = ("TESSERA_", "PREFECT_", "OMP_NUM_THREADS")  # the number of threads decides the order of sums
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "TESSERA_PROJECT": str(settings.project),
        "PYTHONPATH": f"{settings.project}:{ROOT}",
        "OMP_WAIT_POLICY": "passive",  # on a busy machine, threads that wait must not take the processors
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def command(*arguments: str, python: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *python, str(Path(sys.executable).parent / "tessera"), *arguments]


def tessera(settings: Settings, *arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command, to its end; `python` are options for the interpreter."""
    return subprocess.run(
        command(*arguments, python=python),
        cwd=settings.project,
        env=variables(settings),
        capture_output=True,
        text=True,
        timeout=300,
    )


def start(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    """A command that goes on; what it prints is added to a file of the project's home."""
    settings.home.mkdir(exist_ok=True)
    with open(settings.home / "commands.log", "a") as log:
        return subprocess.Popen(
            command(*arguments), cwd=settings.project, env=variables(settings), stdout=log, stderr=log, text=True
        )


def dvc(run: Path, settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """DVC's own command line in a run's folder, with `tessera` on the path."""
    before = dict(os.environ)
    os.environ.update(variables(settings))
    try:
        return graph.run_dvc(run, settings, *arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)


def counted(settings: Settings, run: str, what: str = "started") -> Counter[str]:
    """How often the body of each stage of a run has started (or ended)."""
    log = settings.project / "bodies.log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.is_file() else []
    return Counter(stage for event, of, stage in lines if (event, of) == (what, run))


def locked(run: Path) -> dict[str, dict[str, str]]:
    """What is committed: {stage: {output: content hash}}. Fails on a torn lock."""
    lock = run / "dvc.lock"
    stages = yamlio.load(lock)["stages"] if lock.is_file() else {}
    return {name: {out["path"]: out["md5"] for out in entry["outs"]} for name, entry in stages.items()}


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mlflow_runs(settings: Settings, run: str, system: str = "quickstart") -> list[Any]:
    """Every MLflow run of a run folder."""
    client = Tracking(settings).client
    experiments = [found.experiment_id for found in client.search_experiments(filter_string=f"name = '{system}'")]
    return list(client.search_runs(experiments, f"tags.`tessera.run` = '{run}'"))


def printed(settings: Settings) -> str:
    """The end of what the commands of `start` printed."""
    with contextlib.suppress(OSError):
        return (settings.home / "commands.log").read_text()[-3000:]
    return ""
