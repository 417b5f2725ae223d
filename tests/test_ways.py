"""Less common ways through a run: several processes, outputs that are kept or accepted, a disk that is full."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import runs
from infra import services
from infra.settings import Settings
from tests._project import SMALLEST, counted, dvc, locked, make, sets, tessera
from tests._services import traces

pytestmark = pytest.mark.slow

DIMMED = '''
from typing import Annotated

import torch
from pydantic import Field

from components.interfaces import Transform


class Dim(Transform):
    """Darkens every picture."""

    def __init__(self, *, by: Annotated[float, Field(ge=0, le=1)] = 0.1) -> None:
        self.by = by

    def __call__(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return (images + 1) * (1 - self.by) - 1
'''
WITH_OWN = {**SMALLEST, "tokenizer.transforms": '[{type: "my_components:Dim"}]'}


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


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project with a component of its own, and a finished run that uses it."""
    settings = make(tmp_path_factory.mktemp("own") / "p")
    (settings.project / "my_components.py").write_text(DIMMED)
    done = tessera(settings, "run", "quickstart", "--name", "q", "--inline", *sets(base=WITH_OWN))
    assert done.returncode == 0, done.stdout + done.stderr
    return settings


def change(settings: Settings, before: str, after: str) -> None:
    path = settings.project / "my_components.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def test_a_changed_comment_runs_nothing_and_a_changed_component_its_stage(own: Settings) -> None:
    change(own, '"""Darkens every picture."""', '"""Darkens every picture a bit."""  # by a share')
    plan = ("plan", "quickstart", "--name", "q", *sets(base=WITH_OWN))
    assert "the code changed" not in tessera(own, *plan).stdout
    change(own, "(1 - self.by)", "(1 - 0.5 * self.by)")
    planned = tessera(own, *plan).stdout
    assert "code.tokenizer the code changed" in " ".join(planned.split())


def test_a_kept_output_counts_as_current_and_that_is_noted(own: Settings) -> None:
    before, bodies = locked(own.runs / "q"), counted(own, "q")
    # stages that load the tokenizer read its code, too, and run; what they make is the same
    done = tessera(own, "run", "quickstart", "--name", "q", "--inline", "--keep", "tokenizer", *sets(base=WITH_OWN))
    assert done.returncode == 0, done.stdout + done.stderr
    assert counted(own, "q")["tokenizer"] == bodies["tokenizer"]
    after = locked(own.runs / "q")  # a bundle holds its recipe, and that the code's hashes: it is another one
    assert {stage: after[stage] for stage in ("tokenizer", "tokens")} == {
        stage: before[stage] for stage in ("tokenizer", "tokens")
    }
    noted = [json.loads(line) for line in (own.runs / "q" / "events" / "kept.jsonl").read_text().splitlines()]
    assert noted[-1]["stage"] == "tokenizer"
    assert "code.tokenizer" in noted[-1]["why"]
    again = tessera(own, "run", "quickstart", "--name", "q", "--inline", *sets(base=WITH_OWN))
    assert "everything is up to date" in again.stdout


def test_accepting_a_run_stamps_it_with_the_present_code(own: Settings) -> None:
    change(own, "(1 - 0.5 * self.by)", "(1 - 0.25 * self.by)")
    bodies = counted(own, "q")
    planned = tessera(own, "plan", "quickstart", "--name", "q", *sets(base=WITH_OWN))
    assert "the code changed" in " ".join(planned.stdout.split())
    accepted = tessera(own, "accept", "q")
    assert accepted.returncode == 0, accepted.stderr
    assert "accepted: tokenizer" in accepted.stdout
    again = tessera(own, "run", "quickstart", "--name", "q", "--inline", *sets(base=WITH_OWN))
    assert "everything is up to date" in again.stdout, again.stdout + again.stderr
    assert counted(own, "q") == bodies
    repro = dvc(own.runs / "q", own, "repro", "--pull", "--allow-missing")
    assert "Running stage" not in repro.stdout + repro.stderr
    assert counted(own, "q") == bodies


def test_more_than_changed_code_is_not_accepted(own: Settings) -> None:
    recipe = own.runs / "q" / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("batch_size: 32", "batch_size: 16", 1))
    try:
        refused = tessera(own, "accept", "q")
    finally:
        recipe.write_text(text)
    assert refused.returncode == 2
    assert "has to run, whatever its code" in refused.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_a_message_and_the_same_command_goes_on_after(tmp_path: Path, small_disk: Path) -> None:
    """Every stage meets the full disk once: what is left is a little less than it needs."""
    calm = make(tmp_path / "calm")
    run = ("run", "quickstart", "--name", "q", "--inline", *sets(base=SMALLEST))
    assert tessera(calm, *run).returncode == 0
    settings = make(tmp_path / "p")
    (small_disk / "runs").mkdir()
    (settings.project / "runs").symlink_to(small_disk / "runs")
    ballast = small_disk / "ballast"
    messages = []
    for _attempt in range(12):
        free = os.statvfs(small_disk)
        room = 60_000 if not messages else 60_000 + 90_000 * len(messages)
        ballast.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - room))
        done = tessera(settings, *run)
        ballast.unlink()
        if done.returncode == 0:
            break
        assert done.returncode == 1, done.stdout + done.stderr
        messages.append(done.stderr)
        assert not list((small_disk / "runs" / "q").glob("*.torn"))
    assert messages
    assert all("the disk is full" in text or "No space left" in text for text in messages), messages
    assert all("Traceback" not in text for text in messages), messages
    assert tessera(settings, *run).returncode == 0
    assert locked(settings.runs / "q") == locked(calm.runs / "q")
    assert runs.find(settings.project, "q") == settings.runs / "q"
