"""`infra.compute`: bodies run once, wherever they run, and their result or error arrives as it was."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import body, compute, services
from infra.compute import BodyFailed, Compute, ComputeLost
from infra.settings import Settings
from tests._services import driver, project, until

INLINE = Compute(mode="inline")


def ignore(_: dict[str, Any]) -> None:
    pass


def launch(settings: Settings, work: Path, name: str, how: Compute = INLINE, key: str = "k", **kwargs: Any) -> Any:
    seen = kwargs.pop("on_progress", ignore)
    arguments = {"work": str(work), **kwargs}
    return compute.launch(
        f"bodies:{name}", arguments, key=key, run="r", work=work, settings=settings, compute=how, on_progress=seen
    )


def starts(work: Path) -> int:
    return len((work / "starts").read_text().split()) if (work / "starts").is_file() else 0


# ------------------------------------------------------------------------------------------------------ inline


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = project(tmp_path / "p")
    monkeypatch.syspath_prepend(str(settings.project))
    return settings


def test_inline_runs_once_for_a_key_and_again_for_another(local: Settings, tmp_path: Path) -> None:
    work = tmp_path / "w"
    for key in ("a", "a", "b"):
        assert launch(local, work, "steps", key=key) == {"sum": 3.0}
    assert starts(work) == 2


def test_progress_and_every_metric_arrive(local: Settings, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    launch(local, tmp_path / "w", "steps", count=5, pause=0.01, on_progress=events.append)
    assert [row["step"] for event in events for row in event.get("metrics", [])] == [0, 1, 2, 3, 4]
    assert events[-1]["done"] == 5


def test_half_a_line_is_left_for_the_next_look(tmp_path: Path) -> None:
    tail = body.Tail(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st')
    assert tail.news() == {"metrics": [{"step": 0}]}
    path.write_text('{"step": 0}\n{"step": 1}\n')
    assert tail.news() == {"metrics": [{"step": 1}]}
    assert tail.news() == {}


def test_the_error_is_the_bodys_own_and_the_next_attempt_runs(local: Settings, tmp_path: Path) -> None:
    work = tmp_path / "w"
    with pytest.raises(BodyFailed, match="^ValueError: the codebook is empty$") as caught:
        launch(local, work, "fails")
    assert caught.value.kind == "ValueError"
    assert not caught.value.user_error
    assert 'raise {"ValueError"' in caught.value.trace
    assert launch(local, work, "steps") == {"sum": 3.0}
    assert json.loads((work / "record.failed.json").read_text())["error"]["kind"] == "ValueError"


def test_a_users_mistake_is_marked_as_one(local: Settings, tmp_path: Path) -> None:
    with pytest.raises(BodyFailed, match="^the codebook is empty$") as caught:
        launch(local, tmp_path / "w", "fails", kind="StageFailed")
    assert caught.value.user_error


def test_a_body_that_exits_or_returns_no_json_is_an_error_not_a_loss(local: Settings, tmp_path: Path) -> None:
    with pytest.raises(BodyFailed, match="SystemExit"):
        launch(local, tmp_path / "w", "fails", kind="SystemExit")
    with pytest.raises(BodyFailed, match="TypeError"):
        launch(local, tmp_path / "v", "unwritable")


def _perform(work: str) -> None:
    body.perform("bodies:steps", {"work": work, "count": 10}, "k", Path(work))


def test_two_processes_never_run_one_body_at_a_time(local: Settings, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_perform, args=(str(tmp_path),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert starts(tmp_path) == 1
    assert json.loads((tmp_path / "record.json").read_text())["ok"]


def test_code_of_the_project_names_the_worker(tmp_path: Path) -> None:
    settings = project(tmp_path / "p")
    before = compute._code(settings.project)
    os.utime(settings.project / "bodies.py", ns=(1, 1))
    assert compute._code(settings.project) != before


# --------------------------------------------------------------------------------------------------------- Ray


@pytest.fixture(scope="module")
def ray_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    settings = project(tmp_path_factory.mktemp("ray") / "p", pending_seconds=3.0)
    with services.lease(settings):
        yield settings
    compute.disconnect()
    services.down(settings)


def attach(settings: Settings, work: Path, name: str, arguments: str = "") -> str:
    return f"""
from pathlib import Path
from infra.compute import Compute, launch
from infra.settings import Settings
print(launch("bodies:{name}", dict(work={str(work)!r}, {arguments}), key="k", run="r", work=Path({str(work)!r}),
             settings=Settings(), compute=Compute(), on_progress=lambda event: None))
"""


@pytest.mark.slow
def test_worker_result_output_and_metrics(ray_project: Settings, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    assert launch(ray_project, tmp_path, "steps", Compute(), on_progress=events.append) == {"sum": 3.0}
    assert "printed by the body" in (tmp_path / "worker.log").read_text()
    assert [row["step"] for event in events for row in event.get("metrics", [])] == [0, 1, 2]


@pytest.mark.slow
def test_worker_errors_arrive_as_they_were(ray_project: Settings, tmp_path: Path) -> None:
    with pytest.raises(BodyFailed, match="^the codebook is empty$") as caught:
        launch(ray_project, tmp_path, "fails", Compute(), kind="StageFailed")
    assert caught.value.user_error
    assert starts(tmp_path) == 1


@pytest.mark.slow
def test_a_killed_driver_is_followed_by_one_that_attaches(ray_project: Settings, tmp_path: Path) -> None:
    code = attach(ray_project, tmp_path, "steps", "count=60, pause=0.1")
    first = driver(ray_project, code)
    until(lambda: (tmp_path / "metrics.jsonl").is_file())
    first.send_signal(signal.SIGKILL)
    first.wait()
    others = [driver(ray_project, code) for _ in range(3)]
    assert [other.communicate(timeout=60)[0].strip() for other in others] == ["{'sum': 60.0}"] * 3
    assert starts(tmp_path) == 1


@pytest.mark.slow
def test_drivers_that_come_at_once_start_one_body(ray_project: Settings, tmp_path: Path) -> None:
    code = attach(ray_project, tmp_path, "steps", "count=20, pause=0.1")
    drivers = [driver(ray_project, code) for _ in range(4)]
    assert [each.communicate(timeout=60)[0].strip() for each in drivers] == ["{'sum': 20.0}"] * 4
    assert starts(tmp_path) == 1


@pytest.mark.slow
def test_a_killed_worker_is_replaced(ray_project: Settings, tmp_path: Path) -> None:
    assert launch(ray_project, tmp_path, "once_killed", Compute()) == {"ok": 1.0}
    assert starts(tmp_path) == 2


@pytest.mark.slow
def test_a_new_key_of_a_run_ends_the_old_body(ray_project: Settings, tmp_path: Path) -> None:
    abandoned = driver(ray_project, attach(ray_project, tmp_path, "steps", "count=600, pause=0.1"))
    until(lambda: (tmp_path / "metrics.jsonl").is_file())
    abandoned.kill()
    abandoned.wait()
    assert launch(ray_project, tmp_path, "steps", Compute(), key="other") == {"sum": 3.0}
    rows = (tmp_path / "metrics.jsonl").read_text()
    time.sleep(0.3)
    assert (tmp_path / "metrics.jsonl").read_text() == rows


@pytest.mark.slow
def test_no_room_says_who_holds_it_and_leaves_nothing_waiting(ray_project: Settings, tmp_path: Path) -> None:
    everything = Compute(cpus=float(os.cpu_count() or 1))
    compute.cancel("r", ray_project)  # the worker of the tests before
    compute.warm("holder", ray_project, everything)
    import ray

    ray.get(compute._handles["holder"].ping.remote())
    launch_ = lambda: launch(ray_project, tmp_path, "steps", everything)  # noqa: E731
    with pytest.raises(ComputeLost, match=r"held by the runs: holder\).*tessera cancel"):
        launch_()
    assert compute.cancel("holder", ray_project)
    assert launch_() == {"sum": 3.0}
    compute.release("r", ray_project)


@pytest.mark.slow
def test_several_processes_and_the_error_of_one(ray_project: Settings, tmp_path: Path) -> None:
    several = Compute(mode="train", workers=2)
    assert launch(ray_project, tmp_path, "ranks", several) == {"total": 3.0, "world": 2.0, "rank": 0.0}
    with pytest.raises(BodyFailed, match="^rank 1 found no data$") as caught:
        launch(ray_project, tmp_path, "ranks", several, key="other", broken=True)
    assert caught.value.user_error


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["gcs/gcs_server", "raylet/raylet", "ray start"])
def test_the_same_call_finishes_when_the_head_is_killed(ray_project: Settings, tmp_path: Path, victim: str) -> None:
    def kill() -> None:
        until(lambda: (tmp_path / "metrics.jsonl").is_file())
        from infra import supervisor

        for pid in supervisor.marked(ray_project.home, "ray"):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (f"ray/core/src/ray/{victim}" if "ray start" not in victim else "bin/ray start") in line.split(" --")[0]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killed: list[int] = []
    thread = threading.Thread(target=kill)
    thread.start()
    began = time.monotonic()
    answer = launch(ray_project, tmp_path, "steps", Compute(), count=40, pause=0.1)
    thread.join()
    assert killed
    assert answer == {"sum": 40.0}
    assert time.monotonic() - began < 45
