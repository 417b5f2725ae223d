"""A run's name, its folder, its part of the stage graph; and a new project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from components import yamlio
from flows import plan, recipes, runs
from flows.runs import RunError
from infra.settings import Settings, environment

ROOT = Path(__file__).parent.parent
SECTIONS: dict[str, Any] = {
    name: {"type": "x", "network": "@judge"}
    for name in ("mixture", "networks", "tokenizer", "generator", "posttraining", "evaluation")
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    runs.init_project(tmp_path / "project")
    return tmp_path / "project"


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "", "a/b", "/x", "a\\b", "-x", ".x", "_x", "A", "a b", "ä", "a\n", "a" * 65, "a;b", "$x", "~"],
)
def test_a_name_that_is_no_plain_folder_is_refused(project: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot be a run's name"):
        runs.check_name(name)
    with pytest.raises(RunError):
        runs.write(project, name, SECTIONS)
    assert not (project / "runs").exists()
    assert not (project.parent / "x").exists()


@pytest.mark.parametrize("name", ["a", "0", "quickstart-tiny", "a.b_c-1", "a" * 64, "a..b"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert runs.check_name(name) == name


def test_a_run_is_called_like_its_recipe_and_scale() -> None:
    assert runs.run_name("quickstart", None, []) == "quickstart-tiny"
    assert runs.run_name("quickstart", "small", []) == "quickstart-small"
    assert runs.run_name("quickstart", "small", ["a=1"], None, "mine") == "mine"


def test_changes_show_in_the_name_and_their_order_does_not() -> None:
    one = runs.run_name("quickstart", None, ["a=1", "b=2"])
    assert one.startswith("quickstart-tiny-")
    assert runs.run_name("quickstart", None, ["b=2", "a=1"]) == one
    assert runs.run_name("quickstart", None, ["b=2", "a=2"]) != one
    assert runs.check_name(one) == one


def test_a_given_name_is_checked() -> None:
    with pytest.raises(RunError, match=r"'\.\./x' cannot be a run's name"):
        runs.run_name("quickstart", None, [], None, "../x")


# -------------------------------------------------------------------------------------------------------------- graph


def deps(graph: dict[str, Any]) -> dict[str, list[str]]:
    return {name: [Path(dep).name for dep in stage.get("deps", [])] for name, stage in graph["stages"].items()}


def test_a_full_recipe_has_the_whole_graph(project: Path) -> None:
    assert runs.graph_for(project, SECTIONS)["stages"] == yamlio.load(ROOT / "dvc.yaml")["stages"]
    assert list(runs.graph_for(project, SECTIONS)["stages"]) == runs.stage_names(project)


@pytest.mark.parametrize("empty", [None, {}])
def test_a_null_or_empty_section_has_no_stage_and_nobody_waits_for_it(project: Path, empty: Any) -> None:
    graph = deps(runs.graph_for(project, SECTIONS | {"mixture": empty, "networks": empty, "posttraining": empty}))
    assert list(graph) == ["dataset", "tokenizer", "tokens", "generator", "evaluation", "registration"]
    assert graph["tokenizer"] == ["dataset"]
    assert graph["generator"] == ["tokens"]
    assert graph["evaluation"] == ["dataset", "tokenizer", "generator"]


def test_only_who_refers_to_a_network_waits_for_it(project: Path) -> None:
    nested = {"type": "x", "losses": [{"type": "perceptual", "network": "@judge"}]}
    graph = deps(
        runs.graph_for(project, SECTIONS | {"tokenizer": nested, "evaluation": {"type": "x", "note": "a@judge"}})
    )
    assert {name for name, needed in graph.items() if "networks" in needed} == {"tokenizer", "posttraining"}


def test_without_a_generator_there_are_no_tokens(project: Path) -> None:
    graph = deps(runs.graph_for(project, {"tokenizer": {"type": "x"}, "generator": None}))
    assert graph == {"dataset": [], "tokenizer": ["dataset"], "registration": ["dataset", "tokenizer"]}


def test_every_input_is_an_earlier_stage_of_the_same_graph(project: Path) -> None:
    for left_out in [(), ("mixture",), ("networks", "posttraining"), ("generator", "posttraining", "mixture")]:
        graph = deps(runs.graph_for(project, SECTIONS | dict.fromkeys(left_out)))
        before: set[str] = set()
        for stage, needed in graph.items():
            assert set(needed) <= before
            before.add(stage)


def test_the_graph_of_the_project_is_not_changed_by_a_run(project: Path) -> None:
    before = runs.template(project)
    text = yamlio.dump(before)
    runs.graph_for(project, SECTIONS | {"mixture": None})
    assert yamlio.dump(runs.template(project)) == text


def test_a_changed_graph_is_read_anew(project: Path) -> None:
    assert "mixture" in runs.stage_names(project)
    graph = yamlio.load(project / "dvc.yaml")
    del graph["stages"]["mixture"]
    (project / "dvc.yaml").write_text(yamlio.dump(graph))
    os.utime(project / "dvc.yaml", ns=(1, 1))
    assert "mixture" not in runs.stage_names(project)


def test_every_section_that_a_stage_reads_exists(project: Path) -> None:
    from flows.sections import SECTIONS as known

    for stage, read in runs.sections_read(project).items():
        assert f"code.{stage}" in read
        assert {section.partition(".")[0] for section in read} <= set(known)


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_run_is_written_found_and_left_untouched_when_nothing_changes(project: Path) -> None:
    folder = runs.write(project, "one", SECTIONS)
    assert yamlio.load(folder / "recipe.yaml") == SECTIONS
    assert runs.stage_list(folder) == runs.stage_names(project)
    files = [folder / "recipe.yaml", folder / "dvc.yaml"]
    for file in files:
        os.utime(file, ns=(1, 1))
    runs.write(project, "one", SECTIONS)
    assert [file.stat().st_mtime_ns for file in files] == [1, 1]
    runs.write(project, "one", SECTIONS | {"mixture": None})
    assert "mixture" not in runs.stage_list(folder)
    for name in ("one", "runs/one", "one/", str(folder)):
        assert runs.find(project, name) == folder
    assert runs.all_runs(project) == [folder]


def test_a_run_that_is_not_there_is_answered_with_the_nearest(project: Path) -> None:
    assert runs.all_runs(project) == []
    runs.write(project, "quickstart-tiny", SECTIONS)
    with pytest.raises(RunError, match="there is no run 'quickstart-tin', did you mean 'quickstart-tiny'"):
        runs.find(project, "quickstart-tin")
    (project / "runs" / "empty").mkdir()
    with pytest.raises(RunError, match="there is no run 'empty'"):
        runs.find(project, "empty")


@pytest.mark.parametrize("name", ["../project/runs/one", "..", "a/b", "/etc"])
def test_looking_for_a_run_never_leaves_the_project(project: Path, name: str) -> None:
    runs.write(project, "one", SECTIONS)
    if name.endswith("runs/one"):
        assert runs.find(project, name) == project / "runs" / "one"
    else:
        with pytest.raises(RunError):
            runs.find(project, name)


def test_the_latest_run_of_a_stage_is_the_one_that_made_it_last(project: Path) -> None:
    with pytest.raises(RunError, match="no run has a tokenizer yet"):
        runs.latest(project, "tokenizer")
    for when, name in enumerate(["one", "two"]):
        output = runs.write(project, name, SECTIONS) / "outputs" / "tokenizer"
        output.mkdir(parents=True)
        os.utime(output, (when, when))
    assert runs.latest(project, "tokenizer").name == "two"
    os.utime(project / "runs" / "one" / "outputs" / "tokenizer", (9, 9))
    assert runs.latest(project, "tokenizer").name == "one"


# ----------------------------------------------------------------------------------------------------------- projects


def test_a_new_project_plans_the_quickstart(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(project=project)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    run = plan.prepare(settings, "quickstart", None, [])
    planned = plan.plan(run, settings)
    assert run == project / "runs" / "quickstart-tiny"
    assert [stage.stage for stage in planned] == runs.stage_names(project)
    assert {stage.state for stage in planned} == {"runs"}
    assert {stage.cost for stage in planned} == {None}
    with pytest.raises(recipes.RecipeError, match="whose source reads a folder; 'quickstart' has the source 'glyphs'"):
        plan.prepare(settings, "quickstart", None, [], data=str(project))
    assert [path.name for path in runs.all_runs(project)] == ["quickstart-tiny"]


def test_a_new_project_has_what_the_product_has(project: Path) -> None:
    assert recipes.list_recipes(project) == recipes.list_recipes(ROOT)
    assert (project / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    assert (project / "prefect.yaml").is_file()


def test_the_components_of_a_new_project_can_be_named_in_a_recipe(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project)
    transforms = "tokenizer.transforms=[{type: 'my_components:Mirror'}]"
    resolved = recipes.resolve(project, "quickstart", None, [transforms])
    assert resolved["tokenizer"]["transforms"] == [{"type": "my_components:Mirror"}]


def test_a_folder_that_holds_something_is_not_made_a_project(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty; give a new folder"):
        runs.init_project(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_project_is_the_nearest_folder_upwards(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TESSERA_PROJECT", raising=False)
    run = runs.write(project, "one", SECTIONS)  # it has a dvc.yaml, too, but no recipes
    monkeypatch.chdir(run)
    assert runs.project_root() == project
    monkeypatch.chdir(tmp_path)
    assert runs.project_root() == ROOT
    monkeypatch.setenv("TESSERA_PROJECT", str(tmp_path))
    assert runs.project_root() == tmp_path
    with pytest.raises(RunError, match="is not a project: it has no dvc.yaml; make one with `tessera init DIR`"):
        runs.template(tmp_path)
