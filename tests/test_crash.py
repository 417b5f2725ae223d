"""Kills: what was committed stays and is never made again, what was not is made, and the end is the same to the byte.

Where the run is killed is drawn anew each time; the seed is printed, and TESSERA_CRASH_SEED repeats it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import plan
from flows.walk import opened
from infra import ledger, lineage, records, registry, services, supervisor
from infra.compute import Compute
from infra.settings import Settings, environment
from tests._project import STAGES, counted, dvc, locked, make, mlflow_runs, printed, sets, start, tessera
from tests._services import traces, until

pytestmark = pytest.mark.slow

RUN = ("run", "quickstart", "--name", "q", *sets())
STEPS, SAVED = 100, 10
LONG: dict[str, object] = {
    "tokenizer.train.steps": STEPS,
    "tokenizer.train.batch_size": 16,
    "tokenizer.train.checkpoint_every": SAVED,
    "tokenizer.train.log_every": 1,
}
TRAIN = ("run", "quickstart", "--name", "t", "--until", "tokenizer", *sets(LONG))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project where nothing is killed: everything in one process, without services."""
    return make(tmp_path_factory.mktemp("calm") / "p")


@pytest.fixture(scope="module")
def undisturbed(calm: Settings) -> dict[str, dict[str, str]]:
    """What the whole run commits."""
    done = tessera(calm, *RUN, "--inline")
    assert done.returncode == 0, done.stderr
    return locked(calm.runs / "q")


@pytest.fixture(scope="module")
def trained(calm: Settings) -> dict[str, str]:
    """What the longer training commits."""
    done = tessera(calm, *TRAIN, "--inline")
    assert done.returncode == 0, done.stderr
    return locked(calm.runs / "t")["tokenizer"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    made = make(tmp_path_factory.mktemp("killed") / "p")
    try:
        yield made
    finally:
        services.down(made)
    assert supervisor.marked(made.home) == traces(made) == []


def kill(process: subprocess.Popen[str], after: float = 0.0) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    process.kill()
    process.wait()


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    settings: Settings, undisturbed: dict[str, dict[str, str]]
) -> None:
    seed = int(os.environ.get("TESSERA_CRASH_SEED") or time.time_ns() % 1_000_000)
    chance = random.Random(seed)
    stages = sorted(chance.sample(STAGES, 3), key=STAGES.index)
    points = [("", chance.uniform(0.0, 8.0)), *((stage, chance.uniform(0.0, 3.0)) for stage in stages)]
    run = settings.runs / "q"
    before: dict[str, dict[str, str]] = {}
    for stage, after in points:
        print(f"TESSERA_CRASH_SEED={seed}: killed {after:.2f} s after the start of {stage or 'the command'}")
        process = start(settings, *RUN)
        until(lambda: not stage or counted(settings, "q")[stage] or process.poll() is not None, 200)  # noqa: B023
        kill(process, after)
        committed = locked(run)
        assert committed.items() >= before.items()
        assert set(committed) <= set(counted(settings, "q", "ended"))
        before = committed
    done = tessera(settings, *RUN)
    assert done.returncode == 0, printed(settings) + done.stderr

    assert locked(run) == undisturbed
    assert counted(settings, "q") == counted(settings, "q", "ended") == dict.fromkeys(STAGES, 1)
    assert "up to date" in dvc(run, settings, "status").stdout
    assert not (run / "dvc.lock.torn").exists()
    assert len(registry.versions(settings, "quickstart")) == len(ledger.verify(settings, "quickstart")[0]) == 1
    assert ledger.check(settings, "quickstart") == []
    tracked = mlflow_runs(settings, "q")
    assert sorted(entry.data.tags["tessera.stage"] for entry in tracked) == sorted(["run", *STAGES])
    assert {entry.info.status for entry in tracked} == {"FINISHED"}
    assert len(list((run / "events").glob("*.json"))) == len(STAGES)


def _worker(settings: Settings) -> list[int]:
    return [int((settings.runs / "t/work/tokenizer/body.lock").read_text())]


def _ray(settings: Settings) -> list[int]:
    return supervisor.marked(settings.home, "ray")


@pytest.mark.parametrize("victims", [_worker, _ray], ids=["the worker", "all of Ray"])
def test_a_training_goes_on_from_its_checkpoint_to_the_same_weights_when_its_process_is_killed(
    settings: Settings, trained: dict[str, str], victims: Callable[[Settings], list[int]]
) -> None:
    work = settings.runs / "t" / "work" / "tokenizer"
    before = counted(settings, "t")["tokenizer"]

    def saved() -> int:
        return max((int(path.name.removeprefix("step-")) for path in work.glob("checkpoints/step-*")), default=0)

    process = start(settings, *TRAIN, "--force", "tokenizer")
    until(lambda: counted(settings, "t")["tokenizer"] > before and saved() >= 2 * SAVED, 120)
    for pid in victims(settings):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    reached = saved()
    assert process.wait(timeout=120) == 0, printed(settings)

    assert reached < STEPS
    assert counted(settings, "t")["tokenizer"] == before + 2
    steps = []
    for line in (work / "metrics.jsonl").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last line of the killed process
            steps.append(json.loads(line)["step"])
    done_at_first = len(steps) - (STEPS - reached)
    assert reached <= done_at_first < STEPS
    assert steps == [*range(1, done_at_first + 1), *range(reached + 1, STEPS + 1)]
    assert locked(settings.runs / "t")["tokenizer"] == trained


def _flow_process(flow: str) -> int:
    """The process that a worker started for a flow run, 0 while there is none."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"PREFECT__FLOW_RUN_ID={flow}".encode() in (entry / "environ").read_bytes():
                return int(entry.name)
    return 0


def test_a_flow_killed_in_prefects_worker_is_taken_up_by_the_next_one(settings: Settings) -> None:
    assert tessera(settings, "up").returncode == 0
    api = str(services.addresses(settings).prefect)
    changed = {**LONG, "tokenizer.train.lr": 0.001}
    request = {"recipe": "quickstart", "name": "u", "until": "tokenizer", "overrides": sets(changed)[1::2]}
    deployment = httpx.get(f"{api}/deployments/name/pipeline/pipeline").json()["id"]
    made = httpx.post(f"{api}/deployments/{deployment}/create_flow_run", json={"parameters": {"request": request}})
    flow = made.json()["id"]
    until(lambda: counted(settings, "u")["tokenizer"], 200)
    os.kill(_flow_process(flow), signal.SIGKILL)
    assert counted(settings, "u", "ended")["tokenizer"] == 0
    done = tessera(settings, "run", "quickstart", "--name", "u", "--until", "tokenizer", *sets(changed))
    assert done.returncode == 0, done.stderr
    assert counted(settings, "u")["tokenizer"] == counted(settings, "u", "ended")["tokenizer"] == 1
    assert "tokenizer" in locked(settings.runs / "u")
    until(lambda: httpx.get(f"{api}/flow_runs/{flow}").json()["state"]["type"] == "CRASHED", 30)


def test_what_follows_a_commit_is_done_by_the_next_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make(tmp_path / "p")
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    run = plan.prepare(settings, "quickstart", None, sets()[1::2], "q")

    def step() -> tuple[str, str]:
        with opened(run, settings, Compute(mode="inline")) as walk:
            return walk.step("dataset").state, walk.graph.node("dataset").key()

    def dies(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for module, function in ((records, "put"), (lineage, "emit")):
        with monkeypatch.context() as patched:
            patched.setattr(module, function, dies)
            with pytest.raises(KeyboardInterrupt):
                step()
        assert set(locked(run)) == {"dataset"}
    state, key = step()
    assert state == "cached"
    record = records.find(settings, key)
    assert record is not None
    assert (record["run"], record["outs"]) == ("q", locked(run)["dataset"])
    assert record["metrics"] == json.loads((run / "metrics" / "dataset.json").read_text())
    assert 0 < records.last_cost(settings, "dataset", "q") < 120  # type: ignore[operator]
    assert lineage.event_path(run, "dataset", key).is_file()
    assert sorted(entry.data.tags["tessera.stage"] for entry in mlflow_runs(settings, "q")) == ["dataset", "run"]
    assert not (run / "work" / "dataset" / "record.json").exists()
