"""Outputs that a person takes as current although the code changed: `--keep STAGE` for one stage, `accept` for a run.

The tests stand in the order of a story: each changes the project's component once more."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components import yamlio
from flows import publish
from flows.walk import opened
from infra import lineage
from infra.compute import Compute
from infra.settings import Settings, environment
from tests._project import SMALLEST, contents, counted, dvc, locked, make, sets, tessera

pytestmark = pytest.mark.slow

COMPONENT = '''
import torch

from components.interfaces import Transform


class Dim(Transform):
    """Darkens every picture."""

    def __init__(self) -> None: ...

    def __call__(self, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        return (images + 1) * 0.9 - 1
'''
STAGES = ("dataset", "tokenizer", "registration")
SHORT: dict[str, object] = {
    **{name: value for name, value in SMALLEST.items() if not name.startswith(("generator", "evaluation"))},
    "generator": "null",
    "evaluation": "null",
    "tokenizer.transforms": '[{type: "my_components:Dim"}]',
}
OPTIONS = ("quickstart", "--name", "q", *sets(base=SHORT))
RUN = ("run", *OPTIONS, "--inline")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project with a component of its own, and a finished run that uses it."""
    settings = make(tmp_path_factory.mktemp("accept") / "p")
    (settings.project / "my_components.py").write_text(COMPONENT)
    done = tessera(settings, *RUN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tuple(locked(settings.runs / "q")) == STAGES
    return settings


def change(settings: Settings, factor: str) -> None:
    """The component does something else from now on."""
    path = settings.project / "my_components.py"
    before = path.read_text()
    path.write_text(before.replace(before.partition("* ")[2].partition(" ")[0], factor))
    assert path.read_text() != before


def planned(settings: Settings) -> dict[str, str]:
    """{stage: what would happen and why}."""
    done = tessera(settings, "plan", *OPTIONS)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        stage, _, rest = line.strip().partition(" ")
        if stage in STAGES:
            found[stage] = " ".join(rest.split())
    return found


def noted(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events" / publish.KEPT).read_text().splitlines()]


def kept_in_lineage(settings: Settings) -> dict[str, Any]:
    """{stage: who kept it and why} of the tree that `tessera lineage --json` prints."""
    found: dict[str, Any] = {}

    def visit(node: dict[str, Any]) -> None:
        if "kept" in node:
            found[node["stage"]] = node["kept"]
        for parent in node["inputs"]:
            visit(parent)

    visit(json.loads(tessera(settings, "lineage", "q", "--json").stdout)["tree"])
    return found


def state(settings: Settings) -> tuple[dict[str, dict[str, str]], dict[str, str], Counter[str]]:
    run = settings.runs / "q"
    return locked(run), contents(run / "outputs"), counted(settings, "q")


def test_a_run_whose_code_is_the_same_has_nothing_to_accept(project: Settings) -> None:
    before = state(project)
    done = tessera(project, "accept", "q")
    assert (done.returncode, done.stdout.strip()) == (0, "nothing to accept: the code is the same")
    assert state(project) == before
    assert not (project.runs / "q" / "events" / publish.KEPT).exists()


def test_a_kept_stage_does_not_run_and_its_lineage_says_so(project: Settings) -> None:
    change(project, "0.8")
    now = planned(project)
    assert now["dataset"].startswith("cached")
    assert now["tokenizer"].startswith("runs code.tokenizer the code changed")
    before = state(project)
    done = tessera(project, *RUN, "--keep", "tokenizer")
    assert done.returncode == 0, done.stdout + done.stderr
    run = project.runs / "q"
    # registration reads the tokenizer's code, too, and the bundle holds the recipe
    assert counted(project, "q") - before[2] == {"registration": 1}
    for stage in ("dataset", "tokenizer"):
        assert locked(run)[stage] == before[0][stage]
    (entry,) = noted(run)
    assert (entry["stage"], entry["why"]) == ("tokenizer", {"code.tokenizer": "the code changed"})
    assert kept_in_lineage(project) == {"tokenizer": {"who": entry["who"], "why": entry["why"]}}
    text = tessera(project, "lineage", "q").stdout
    assert f"kept by {entry['who']}, not made anew: code.tokenizer the code changed" in text
    assert all(how.startswith("cached") for how in planned(project).values())


def test_dvc_repro_agrees_with_what_was_kept(project: Settings) -> None:
    before = state(project)
    done = dvc(project.runs / "q", project, "repro", "--pull", "--allow-missing")
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout
    assert state(project) == before


def test_a_kill_between_note_and_event_does_not_lose_who_kept_it(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(project, "0.7")
    for name, value in environment(project).items():
        monkeypatch.setenv(name, value)
    assert planned(project)["tokenizer"].startswith("runs code.tokenizer")
    run = project.runs / "q"

    def dies(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    def step() -> str:
        with opened(run, project, Compute(mode="inline"), keep=frozenset({"tokenizer"})) as walk:
            assert walk.step("dataset").state == "cached"
            return walk.step("tokenizer").state

    with monkeypatch.context() as patched:
        patched.setattr(lineage, "emit", dies)
        with pytest.raises(KeyboardInterrupt):
            step()
    assert step() == "cached"
    assert lineage.events(run)["tokenizer"]["run"]["facets"]["tessera"]["kept"]["who"] == noted(run)[-1]["who"]


def test_an_accepted_run_is_current_in_all_its_stages_and_nothing_ran(project: Settings) -> None:
    assert tessera(project, *RUN).returncode == 0
    change(project, "0.6")
    assert planned(project)["tokenizer"].startswith("runs code.tokenizer the code changed")
    before = state(project)
    done = tessera(project, "accept", "q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "accepted: tokenizer, registration"
    assert state(project) == before
    assert all(how.startswith("cached") for how in planned(project).values())
    again = tessera(project, *RUN)
    assert "everything is up to date" in again.stdout, again.stdout + again.stderr
    assert set(kept_in_lineage(project)) == {"tokenizer", "registration"}
    repro = dvc(project.runs / "q", project, "repro", "--pull", "--allow-missing")
    assert "up to date" in repro.stdout
    assert state(project) == before


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("tokenizer.train.steps", 9, "tokenizer.train.steps 8 -> 9"),
        ("seed", 5, "seed 0 -> 5"),
    ],
)
def test_more_than_changed_code_is_refused_by_name_and_changes_nothing(
    project: Settings, path: str, value: object, says: str
) -> None:
    recipe = project.runs / "q" / "recipe.yaml"
    text = recipe.read_text()
    changed: Any = yamlio.load(recipe)
    *sections, key = path.split(".")
    inner = changed
    for section in sections:
        inner = inner[section]
    inner[key] = value
    recipe.write_text(text.partition("\n")[0] + "\n" + yamlio.dump(changed))
    asked = recipe.read_text()
    before = state(project)
    try:
        refused = tessera(project, "accept", "q")
        assert refused.returncode == 2
        assert says in refused.stderr
        assert "has to run, whatever its code" in refused.stderr
        assert (state(project), recipe.read_text()) == (before, asked)
    finally:
        recipe.write_text(text)


def test_an_altered_output_is_not_accepted(project: Settings) -> None:
    change(project, "0.5")
    path = next((project.runs / "q" / "outputs" / "tokenizer").glob("*.safetensors"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        refused = tessera(project, "accept", "q")
    finally:
        path.write_bytes(data)
    assert refused.returncode == 2
    assert "tokenizer has to run, whatever its code: output outputs/tokenizer" in refused.stderr


def test_a_stage_that_is_not_there_cannot_be_kept(project: Settings) -> None:
    done = tessera(project, *RUN, "--keep", "generator")
    assert done.returncode == 2
    assert "has no stage 'generator'" in done.stderr
