"""What bodies print: each line once, as it ends, in the worker's log and in the log tab of the stage's task run."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from infra import services
from infra.body import Tail
from tests._project import SMALLEST, make, sets, tessera
from tests._services import traces

LOUD = '''
import sys

import torch

from components.interfaces import Transform


class Loud(Transform):
    """Prints what it sees."""

    seen = 0

    def __init__(self) -> None: ...

    def __call__(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        Loud.seen += 1
        if Loud.seen == 1:
            print("loud began, 100 % sure")
            print("x" * 2000)
            print("and on the other stream", file=sys.stderr)
            for number in range(1000):
                print("flood", number)
            print("loud has printed")
        return images
'''


def test_each_line_is_news_once_and_only_when_it_has_ended(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("of an earlier attempt\n")
    tail = Tail(tmp_path)
    assert tail.news() == {}
    with open(log, "a") as file:
        for text, news in (("one\ntw", ["one"]), ("o\n", ["two"]), ("10%\r20%\r30%\nend\r\n", ["30%", "end"])):
            file.write(text)
            file.flush()
            assert tail.news() == {"printed": news}
            assert Tail(tmp_path, tail.seen).news() == {}


def test_a_log_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("a long line of an earlier attempt\n")
    tail = Tail(tmp_path)
    log.write_text("anew\n")
    assert tail.news() == {"printed": ["anew"]}


@pytest.mark.slow
def test_the_log_tab_of_a_stage_has_what_its_body_printed(tmp_path: Path) -> None:
    settings = make(tmp_path / "p")
    (settings.project / "my_components.py").write_text(LOUD)
    changed = sets({"tokenizer.transforms": '[{type: "my_components:Loud"}]'}, SMALLEST)
    try:
        done = tessera(settings, "run", "quickstart", "--name", "q", "--until", "tokenizer", *changed)
        assert done.returncode == 0, done.stdout + done.stderr
        api = services.addresses(settings).prefect
        tasks = httpx.post(f"{api}/task_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}).json()
        (task,) = [task["id"] for task in tasks if task["name"] == "tokenizer"]
        lines = _lines(str(api), task, "loud has printed")
    finally:
        services.down(settings)
    assert traces(settings) == []
    assert "loud began, 100 % sure" not in done.stdout + done.stderr
    assert {"loud began, 100 % sure", "and on the other stream", "flood 999"} <= set(lines)
    assert [len(line) for line in lines if line.startswith("xxx")] == [500 + len(" ... 2000 letters")]
    flood = [line for line in lines if line.startswith("flood ")]
    assert len(flood) == len(set(flood)) < 1000
    assert sum("lines are left out here; `tessera logs q` shows all" in line for line in lines) >= 1
    whole = (settings.runs / "q" / "work" / "tokenizer" / "worker.log").read_text()
    assert all(f"flood {number}\n" in whole for number in range(1000))


def _lines(api: str, task: str, last: str) -> list[str]:
    """The log of a task run; Prefect sends it in batches, the last one a moment after the end."""
    wanted = {"logs": {"task_run_id": {"any_": [task]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
    deadline = time.monotonic() + 20
    found: list[str] = []
    while last not in found and time.monotonic() < deadline:
        found, page = [], ["anything"]
        while page:
            answer = httpx.post(f"{api}/logs/filter", json={**wanted, "offset": len(found)}).json()
            page = [entry["message"] for entry in answer]
            found += page
    return found
