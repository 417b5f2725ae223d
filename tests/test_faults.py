"""Faults other than a killed run: a disk that fills up at a chosen moment, a training process that dies, two promotions in
the same instant. Nothing is lost, the message says what to do, and the same command goes on to the same end.

The disk is a real one of 64 MB (tmpfs, which root may mount), filled to its last byte."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import plan
from flows.walk import opened
from infra import full_disk, graph, ledger, lineage, records, registry, services
from infra.compute import Compute
from infra.settings import Settings, environment
from tests._project import (
    SMALLEST,
    command,
    contents,
    counted,
    locked,
    make,
    mlflow_runs,
    printed,
    sets,
    small_disk,
    start,
    tessera,
    variables,
)
from tests._services import traces, until

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------------------------------------------- full disk

UNTIL = ("dataset", "tokenizer")
SHORT: dict[str, object] = {
    **{name: value for name, value in SMALLEST.items() if not name.startswith(("generator", "evaluation"))},
    "generator": "null",
    "evaluation": "null",
    "tokenizer.train.checkpoint_every": 2,
    "tokenizer.train.log_every": 1,
}


class Disk:
    """A small file system of its own, which `fill` leaves without a single free byte."""

    def __init__(self, place: Path) -> None:
        self.place, self.ballast = place, place / "ballast"

    def fill(self) -> None:
        with open(self.ballast, "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        assert os.statvfs(self.place).f_bavail == 0

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", "64m") as place:
        yield Disk(place)


def prepared(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    return plan.prepare(settings, "quickstart", None, sets(base=SHORT)[1::2], "q")


def walk(run: Path, settings: Settings) -> dict[str, str]:
    """Brings the stages up to date in this process, then everything that follows; {stage: what happened}."""
    states = {}
    with opened(run, settings, Compute(mode="inline")) as walker:
        for stage in UNTIL:
            states[stage] = walker.step(stage).state
        walker.finish()
    return states


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """What the two stages commit, and the bytes of their outputs."""
    settings = make(tmp_path_factory.mktemp("calm") / "p")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = prepared(settings, monkeypatch)
        assert walk(run, settings) == dict.fromkeys(UNTIL, "ran")
    return locked(run), contents(run / "outputs")


#: what is about to happen for the n-th time when the disk fills up -> what becomes of the stage afterwards
MOMENTS = {
    "the body begins": ("flows.dataset:body", 1, "dataset", "ran"),
    "a checkpoint is written": ("components.training.checkpoints:save", 2, "tokenizer", "ran"),
    "the commit begins": ("infra.graph:StageNode.commit", 2, "tokenizer", "ran"),
    "the lock is written": ("infra.graph:RunGraph.write_lock", 2, "tokenizer", "restored"),
    "the record is put": ("infra.records:put", 2, "tokenizer", "cached"),
    "MLflow is told": ("infra.tracking:Tracking.metrics", 2, "tokenizer", "cached"),
    "the lineage event is written": ("infra.lineage:emit", 2, "tokenizer", "cached"),
    "the report is written": ("flows.report:write", 1, "tokenizer", "cached"),
    "the outputs are pushed": ("infra.graph:RunGraph.push", 1, "tokenizer", "cached"),
}


def at(moment: str, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `act` done just before the function of a moment is called for the given time."""
    target, time, _, _ = MOMENTS[moment]
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), []

    def hooked(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == time:
            act()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, hooked)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(
    moment: str,
    disk: Disk,
    undisturbed: tuple[dict[str, dict[str, str]], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make(disk.place / "p")
    run = prepared(settings, monkeypatch)
    lock, outputs = undisturbed
    with monkeypatch.context() as patched:
        at(moment, disk.fill, patched)
        with pytest.raises(full_disk.DiskFull) as raised:
            walk(run, settings)
    assert str(disk.place) in str(raised.value)
    assert "free some space and run the same command again" in str(raised.value)

    committed = locked(run)  # a torn lock fails here
    assert committed.items() <= lock.items()
    assert [path.name for path in run.glob("dvc.lock*") if path.name != "dvc.lock"] == []
    assert list(disk.place.rglob(".new.*")) == list(run.glob(".dvc.lock.*")) == []
    for event in (run / "events").glob("*.json"):
        json.loads(event.read_text())

    disk.free()
    _, _, stage, becomes = MOMENTS[moment]
    assert walk(run, settings)[stage] == becomes
    assert (locked(run), contents(run / "outputs")) == (lock, outputs)
    with graph.open_graph(run, settings) as whole:
        for name in UNTIL:
            assert whole.node(name).why() == {}
            assert records.find(settings, whole.node(name).key()) is not None
            assert lineage.event_path(run, name, whole.node(name).key()).is_file()
        assert whole.push() == 0
    tracked = {entry.data.tags["tessera.stage"]: entry.info.status for entry in mlflow_runs(settings, "q")}
    assert tracked == dict.fromkeys(["run", *UNTIL], "FINISHED")


def test_a_training_that_met_a_full_disk_goes_on_from_its_checkpoint(
    disk: Disk, undisturbed: tuple[dict[str, dict[str, str]], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(disk.place / "p")
    run = prepared(settings, monkeypatch)
    with monkeypatch.context() as patched:
        at("a checkpoint is written", disk.fill, patched)
        with pytest.raises(full_disk.DiskFull):
            walk(run, settings)
    disk.free()
    kept = sorted(path.name for path in (run / "work" / "tokenizer" / "checkpoints").glob("step-*"))
    before = len((run / "work" / "tokenizer" / "metrics.jsonl").read_text().splitlines())
    walk(run, settings)
    assert kept
    steps = [
        json.loads(line)["step"] for line in (run / "work" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    ]
    assert min(steps[before:]) > int(kept[-1].removeprefix("step-"))
    assert locked(run) == undisturbed[0]


def test_the_command_says_in_one_line_that_the_disk_is_full(disk: Disk) -> None:
    settings = make(disk.place / "p")
    run = ("run", "quickstart", "--name", "q", "--inline", "--until", "dataset", *sets(base=SHORT))
    disk.fill()
    full = tessera(settings, *run)
    assert full.returncode == 1
    assert full.stderr.startswith("error the disk is full: 0.0 MB are free where ")
    assert "free some space and run the same command again" in full.stderr
    assert len(full.stderr.splitlines()) == 1
    disk.free()
    done = tessera(settings, *run)
    assert done.returncode == 0, done.stderr
    assert set(locked(settings.runs / "q")) == {"dataset"}


# --------------------------------------------------------------------------------------- several training processes

STEPS, SAVED = 60, 10
TELLTALE = '''
import os
from pathlib import Path

import torch

from components.interfaces import Transform


class Telltale(Transform):
    """Changes nothing; says which process it is in, and takes its time."""

    def __init__(self) -> None: ...

    def __call__(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        rank = os.environ.get("RANK", "0")
        place = Path(__file__).parent / f"rank-{rank}"
        if not place.is_file() or place.read_text() != str(os.getpid()):
            place.write_text(str(os.getpid()))
            print("rank", rank, "has begun", flush=True)
        return images
'''
TRAIN = (
    "run", "quickstart", "--name", "t", "--until", "tokenizer",
    *sets(
        {
            "tokenizer.transforms": '[{type: "my_components:Telltale"}]',
            "tokenizer.train.steps": STEPS,
            "tokenizer.train.checkpoint_every": SAVED,
            "tokenizer.train.log_every": 1,
        },
        SHORT,
    ),
)  # fmt: skip


def test_a_training_of_two_processes_goes_on_when_one_of_them_is_killed(tmp_path: Path) -> None:
    calm, settings = make(tmp_path / "calm"), make(tmp_path / "p")
    for project in (calm, settings):
        (project.project / "my_components.py").write_text(TELLTALE)
    work = settings.runs / "t" / "work" / "tokenizer"

    def saved() -> int:
        return max((int(path.name.removeprefix("step-")) for path in work.glob("checkpoints/step-*")), default=0)

    try:
        process = start(settings, *TRAIN, "--compute", "2")
        until(lambda: saved() >= 2 * SAVED or process.poll() is not None, 240)
        assert process.poll() is None, printed(settings)
        os.kill(int((settings.project / "rank-1").read_text()), signal.SIGKILL)
        assert process.wait(timeout=300) == 0, printed(settings)
        rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
        log, resumed = (work / "worker.log").read_text(), locked(settings.runs / "t")
        assert counted(settings, "t", "ended") == {"dataset": 1, "tokenizer": 1}
        again = tessera(settings, *TRAIN, "--compute", "2", "--force", "tokenizer")
        assert again.returncode == 0, again.stderr
    finally:
        services.down(settings)
    assert traces(settings) == []
    assert locked(settings.runs / "t") == resumed  # to the same weights as without the kill
    assert len(list((settings.runs / "t" / "outputs" / "tokenizer").glob("*.safetensors"))) == 1
    assert log.count("rank 0 has begun") == log.count("rank 1 has begun") == 2

    steps = [row["step"] for row in rows]
    # killed between a checkpoint and the next step, nothing is repeated
    back = next((index for index in range(1, len(steps)) if steps[index] <= steps[index - 1]), 0)
    if back:
        assert 2 * SAVED <= steps[back] - 1 < steps[back - 1] < STEPS
        assert (steps[back] - 1) % SAVED == 0
    assert steps == [*range(1, steps[back - 1] + 1 if back else 1), *range(steps[back], STEPS + 1)]

    assert tessera(calm, *TRAIN, "--inline").returncode == 0
    alone = (calm.runs / "t" / "work" / "tokenizer" / "metrics.jsonl").read_text().splitlines()
    for row, line in zip(
        rows[:5], alone, strict=False
    ):  # the same global batch; each process draws its part of the codes
        assert row["loss"] == pytest.approx(json.loads(line)["loss"], rel=0.02)
    last = rows[-1]["loss"] / json.loads(alone[-1])["loss"]
    assert 0.9 < last < 1.1


# ------------------------------------------------------------------------------------------------- two promotions

#: whoever is about to create a ledger record waits until another one is, too
_TOGETHER = r"""

import time

def _together(event, arguments):
    if event == "os.link" and "/promotions/" in os.fspath(arguments[1]):
        folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "arrived")
        if os.path.isdir(folder):
            open(os.path.join(folder, str(os.getpid())), "w").close()
            deadline = time.monotonic() + 120
            while len(os.listdir(folder)) < 2 and time.monotonic() < deadline:
                time.sleep(0.001)

sys.addaudithook(_together)
"""


def test_of_two_promotions_in_the_same_instant_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    settings = make(tmp_path / "p")
    with open(settings.project / "sitecustomize.py", "a") as hooks:
        hooks.write(_TOGETHER)
    for name, factor in (("one", 0.9), ("two", 0.8)):
        changed = sets({"sampling.temperature": factor}, SMALLEST)  # the second shares the trainings of the first
        done = tessera(settings, "run", "quickstart", "--name", name, "--inline", *changed)
        assert done.returncode == 0, done.stdout + done.stderr
    versions = {v.tags["tessera.run"]: str(v.version) for v in registry.versions(settings, "quickstart")}
    assert set(versions) == {"one", "two"}
    assert ledger.history(settings, "quickstart") == []
    (settings.project / "arrived").mkdir()

    both = {
        name: subprocess.Popen(
            command("promote", name),
            cwd=settings.project,
            env=variables(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in versions
    }
    said = {name: process.communicate(timeout=200) for name, process in both.items()}
    assert len(list((settings.project / "arrived").iterdir())) == 2, said  # both had judged before either had written
    codes = {name: process.returncode for name, process in both.items()}
    assert sorted(codes.values()) == [0, 2], said
    winner, loser = sorted(codes, key=lambda name: codes[name])
    assert "is the champion" in said[winner][0]
    assert "somebody else changed the champion of quickstart at this moment; look again and repeat" in said[loser][1]
    assert "Traceback" not in said[loser][1]

    (record,) = ledger.verify(settings, "quickstart")[0]
    assert (record["run"], record["to"], record["from"]) == (winner, versions[winner], None)
    assert registry.get_alias(settings, "quickstart", "champion") == versions[winner]
    assert ledger.check(settings, "quickstart") == []

    again = tessera(settings, "promote", loser)
    assert again.returncode == 0, again.stderr
    assert [r["run"] for r in ledger.verify(settings, "quickstart")[0]] == [winner, loser]
    aliases = [registry.get_alias(settings, "quickstart", alias) for alias in ("champion", "previous")]
    assert aliases == [versions[loser], versions[winner]]
    assert ledger.check(settings, "quickstart") == []
