"""A run whose trainings are of several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra import services
from tests._project import SMALLEST, counted, locked, make, sets, tessera
from tests._services import traces

pytestmark = pytest.mark.slow


def metrics(run: Path, stage: str) -> dict[str, float]:
    return json.loads((run / "metrics" / f"{stage}.json").read_text())


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    settings = make(tmp_path / "p")
    options = ("--until", "generator", *sets(base=SMALLEST))
    try:
        two = tessera(settings, "run", "quickstart", "--name", "two", "--compute", "2", *options)
        assert two.returncode == 0, two.stdout + two.stderr
        one = tessera(
            settings,
            "run",
            "quickstart",
            "--name",
            "one",
            "--inline",
            "--force",
            "tokenizer",
            "--force",
            "generator",
            *options,
        )
        assert one.returncode == 0, one.stderr
    finally:
        services.down(settings)
    assert traces(settings) == []
    assert set(locked(settings.runs / "two")) == {"dataset", "tokenizer", "tokens", "generator"}
    assert counted(settings, "two", "ended") == {"dataset": 1, "tokenizer": 1, "tokens": 1, "generator": 1}
    for stage in ("tokenizer", "generator"):
        alone, together = (metrics(settings.runs / name, stage)["loss"] for name in ("one", "two"))
        assert together == pytest.approx(alone, rel=0.02), stage  # the order of sums differs
        assert len(list((settings.runs / "two" / "outputs" / stage).glob("*.safetensors"))) == 1
    assert not list((settings.runs / "two" / "work").glob("*/output*"))
