"""OpenLineage events of a run and the tree they make, down to the shards."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from infra import graph, lineage
from infra.settings import Settings, environment
from tests._runs import make_project, make_run, walk, write_recipe


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = make_project(tmp_path / "project", git=True)
    for name, value in environment(made).items():
        monkeypatch.setenv(name, value)
    git = ["git", "-C", str(made.project), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "add", "make.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    return made


def emit(run: Path, settings: Settings) -> None:
    """An event for every stage that has none yet, as the pipeline publishes them."""
    with graph.open_graph(run) as opened:
        for node in opened.stages:
            if not lineage.event_path(run, node.name, node.key()).is_file():
                lineage.emit(
                    run, settings, stage=node.name, key=node.key(), state="ran", inputs=node.deps, outputs=node.outs,
                    sections=node.params, metrics={"letters": 3.0}, facts={"mlflow_run": "m1", "flow_run": None},
                )  # fmt: skip


def stages(node: dict[str, object]) -> list[str]:
    return [str(node["stage"]), *(name for parent in node["inputs"] for name in stages(parent))]  # type: ignore[attr-defined]


def test_the_tree_goes_back_to_the_data(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk(run)
    emit(run, settings)
    found = lineage.tree(run, settings)
    assert stages(found["tree"]) == ["c", "b", "a"]
    top = found["tree"]
    assert top["settings"] == {"c": {"size": 1}}
    assert top["metrics"] == {"letters": 3.0}
    assert top["mlflow_run"] == "m1"
    assert len(top["commit"].rstrip("+")) == 12
    text = lineage.render(found)
    assert [line.strip(" |`-").split()[0] for line in text.splitlines() if "- " in line] == ["c", "b", "a"]


def test_shards_and_weights_by_content(settings: Settings) -> None:
    run = make_run(settings, "one")
    graph_file = run / "dvc.yaml"
    graph_file.write_text(graph_file.read_text().replace("  a:\n", "  dataset:\n").replace("  b:\n", "  mixture:\n"))
    for folder, content in (("a", {"x.txt": "1"}), ("b", {"mixture.json": json.dumps({"summary": {"digits": 0.9}})})):
        (run / "outputs" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            (run / "outputs" / folder / name).write_text(text)
    (run / "metrics").mkdir(exist_ok=True)
    with graph.open_graph(run) as opened:
        for node in opened.stages[:2]:
            (run / f"metrics/{ {'dataset': 'a', 'mixture': 'b'}[node.name] }.json".replace(" ", "")).write_text("{}")
            node.commit()
            lineage.emit(
                run, settings, stage=node.name, key=node.key(), state="ran", inputs=node.deps, outputs=node.outs,
                sections=node.params, metrics={}, facts={},
            )  # fmt: skip
    (run / "outputs/b/mixture.json").write_text(json.dumps({"summary": {"changed": 1}}))  # later; not what was recorded
    top = lineage.tree(run, settings)["tree"]
    assert (top["stage"], top["weights"]) == ("mixture", {"digits": 0.9})
    assert [shard["path"] for shard in top["inputs"][0]["shards"]] == ["x.txt"]
    assert "x.txt" in lineage.render({"run": "one", "tree": top})


def test_a_setting_changed_back_brings_its_event_back(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk(run)
    emit(run, settings)
    first = lineage.tree(run, settings)["tree"]["output"]
    write_recipe(run, c="{size: 2}")
    walk(run)
    emit(run, settings)
    second = lineage.tree(run, settings)["tree"]
    assert second["output"] != first
    write_recipe(run)
    assert walk(run)["c"] == "restored"
    emit(run, settings)
    assert lineage.tree(run, settings)["tree"]["output"] == first
    assert lineage.tree(run, settings, second["key"])["tree"]["output"] == second["output"]


@pytest.mark.slow
def test_a_model_version_leads_to_its_run_and_its_promotions(settings: Settings, tmp_path: Path) -> None:
    from infra import ledger, registry
    from infra.tracking import Tracking

    run = make_run(settings, "one")
    walk(run)
    emit(run, settings)
    with graph.open_graph(run) as opened:
        key, digest = opened.node("c").key(), opened.node("c").outs["outputs/c"]
    tracking = Tracking(settings)
    run_id = tracking.child("m", tracking.parent("m", "one", {}), "one", "c", key)
    registry.register(settings, "m", run / "outputs/c", key=key, run="one", run_id=run_id, facts={})
    ledger.promote(settings, "m", "1", who="ada", why="first", gates=[], expected=None)
    write_recipe(run, c="{size: 2}")  # the run has moved on since
    walk(run)
    emit(run, settings)
    found = lineage.of_version("models:/m@champion", settings)
    assert found["tree"]["output"] == digest
    assert [record["who"] for record in found["promotions"]] == ["ada"]
    assert lineage.render(found).splitlines()[0] == "models:/m/1  (run one)"
    with pytest.raises(registry.RegistryError, match="there is no models:/m/7"):
        lineage.of_version("models:/m/7", settings)


def test_what_was_made_from_it(settings: Settings) -> None:
    for name in ("one", "two"):
        run = make_run(settings, name, c=f"{{of: {name}}}")
        walk(run)
        emit(run, settings)
    with graph.open_graph(settings.runs / "one") as opened:
        digest = opened.node("b").outs["outputs/b"]
    assert lineage.users(settings, digest) == ["one/c", "two/c"]
    assert lineage.users(settings, "nothing") == []


def test_a_run_without_events_is_a_message(settings: Settings) -> None:
    with pytest.raises(lineage.LineageError, match="no lineage yet"):
        lineage.tree(make_run(settings, "one"), settings)


def test_events_conform_to_the_specification(settings: Settings) -> None:
    """The official client reads back what was written."""
    client = pytest.importorskip("openlineage.client.event_v2")
    run = make_run(settings, "one")
    walk(run)
    emit(run, settings)
    for event in lineage.events(run).values():
        made = client.RunEvent(
            eventType=client.RunState(event["eventType"]),
            eventTime=event["eventTime"],
            run=client.Run(runId=event["run"]["runId"]),
            job=client.Job(namespace=event["job"]["namespace"], name=event["job"]["name"]),
            inputs=[client.InputDataset(item["namespace"], item["name"]) for item in event["inputs"]],
            outputs=[client.OutputDataset(item["namespace"], item["name"]) for item in event["outputs"]],
            producer=event["producer"],
        )
        assert made.schemaURL == event["schemaURL"]
        for facet in (event["run"]["facets"]["tessera"], *(item["facets"]["tessera"] for item in event["outputs"])):
            assert {"_producer", "_schemaURL"} <= set(facet)


def test_no_git_is_no_commit(tmp_path: Path) -> None:
    assert lineage.commit(tmp_path) == {}
