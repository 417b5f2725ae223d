"""`tessera data verify | repair | gc`: what a store has lost is named with whom it concerns, mended where it can be, and
nothing is collected that a run, a model version or running work refers to."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import data_admin
from infra import cleanup, datasets, graph, ledger, registry, upkeep
from infra.datasets import Sealed, Store
from infra.objects import md5_of, place
from infra.settings import Settings, environment
from infra.storage import write_bytes_atomic
from infra.tracking import Tracking
from tests import _s3
from tests._runs import make_project, make_run, walk
from tests._s3 import Bucket

LONG_AGO = time.time() - 100 * 3600


@pytest.fixture(scope="module")
def moto() -> Iterator:
    with _s3.serve() as fresh:
        yield fresh


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run `one`, all in its store, and an MLflow store with its tables: both take seconds."""
    made = make_project(tmp_path_factory.mktemp("prepared") / "project")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(made).items():
            patch.setenv(name, value)
        finished(made, "one")
    Tracking(made)
    return made.project


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket | None:
    return request.getfixturevalue("moto")(monkeypatch) if request.param == "s3" else None


@pytest.fixture
def settings(bucket: Bucket | None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """That project, with its store in a folder or on S3."""
    project = tmp_path / "project"
    shutil.copytree(prepared, project)
    if bucket:
        monkeypatch.setenv("TESSERA_REMOTE", bucket.upload(project / ".tessera" / "remote"))
    made = Settings(project=project, home=Path(".tessera"))
    for name, value in environment(made).items():
        monkeypatch.setenv(name, value)
    (made.runs / "one" / ".dvc" / "config").unlink()  # a copy would go on with the store of the original
    graph.create(made.runs / "one", made)
    return made


def finished(settings: Settings, name: str, **sections: str) -> Path:
    run = make_run(settings, name, **sections)
    walk(run)
    with graph.open_graph(run, settings) as opened:
        opened.push()
    (run / "report.html").write_text("done")
    return run


def store_of(settings: Settings) -> Store:
    return datasets.store(settings)


def tree_of(settings: Settings, stage: str, run: str = "one") -> str:
    with graph.open_graph(settings.runs / run, settings) as opened:
        return opened.node(stage).outs[f"outputs/{stage}"]


def leaf(settings: Settings, stage: str, name: str = "x.txt") -> str:
    return datasets.tree(store_of(settings), tree_of(settings, stage))[name]


def damage(settings: Settings, digest: str, bucket: Bucket | None) -> None:
    if bucket:
        bucket.put(f"data/{place(digest)}", b"nonsense")
        return
    path = Path(store_of(settings).url) / place(digest)
    os.chmod(path, 0o644)
    path.write_bytes(b"nonsense")


def forget_here(settings: Settings, digest: str, stage: str = "") -> None:
    """What this machine has of an object goes."""
    for path in (settings.home / "cache" / place(digest), *settings.runs.glob(f"*/outputs/{stage}/x.txt")):
        if path.is_file() and md5_of(path) == digest.removesuffix(".dir"):
            path.unlink()


def found(settings: Settings, thorough: bool = False) -> list[tuple[str, str, str]]:
    return [(problem.digest, problem.state, problem.name) for problem in upkeep.verify(settings, thorough)]


def version(settings: Settings, model: str, data: str) -> str:
    """A registered version that was made from these data."""
    client = Tracking(settings).client
    client.create_registered_model(model)
    made = client.create_model_version(model, "file:///nowhere", tags={"tessera.data": data})
    return str(made.version)


# --------------------------------------------------------------------------------------------------------- verify


def test_a_whole_store_has_no_problems(settings: Settings) -> None:
    assert upkeep.verify(settings) == []
    assert upkeep.verify(settings, thorough=True) == []
    assert data_admin.verify(settings, thorough=True) == 0


def test_what_is_missing_is_named_with_the_runs_and_models_it_concerns(settings: Settings) -> None:
    finished(settings, "two", c="{size: 5}")
    version(settings, "m", tree_of(settings, "b"))
    lost = leaf(settings, "b")
    store_of(settings).objects.remove(lost)
    (problem,) = upkeep.verify(settings)
    assert (problem.digest, problem.state, problem.name) == (lost, "missing", "x.txt")
    assert problem.tree == tree_of(settings, "b")
    assert (problem.runs, problem.versions) == (("one", "two"), ("models:/m/1",))
    assert data_admin.verify(settings, thorough=False) == 1


def test_what_is_damaged_is_found_by_reading_it(settings: Settings, bucket: Bucket | None) -> None:
    digest = leaf(settings, "a")
    damage(settings, digest, bucket)
    assert found(settings) == []
    assert found(settings, thorough=True) == [(digest, "damaged", "x.txt")]


def test_a_lost_or_damaged_list_is_found_without_reading(settings: Settings, bucket: Bucket | None) -> None:
    lost, damaged = tree_of(settings, "a"), tree_of(settings, "c")
    store_of(settings).objects.remove(lost)
    damage(settings, damaged, bucket)
    assert sorted(found(settings)) == sorted(
        [(lost, "missing", "(the list of its files)"), (damaged, "damaged", "(the list of its files)")]
    )


def test_a_run_that_has_not_ended_is_no_problem(settings: Settings) -> None:
    walk(make_run(settings, "begun", a="{size: 7}"))
    assert upkeep.verify(settings) == []


def test_the_data_of_a_champion_are_looked_for_without_its_run(settings: Settings) -> None:
    """A version that the registry no longer has, and whose run was removed, is in the ledger still."""
    data = tree_of(settings, "a")
    made = version(settings, "m", data)
    registry.set_alias(settings, "m", "champion", made)
    ledger.promote(settings, "m", made, who="me", why="best", gates=[], expected=None)
    client = Tracking(settings).client
    client.delete_model_version_tag("m", made, "tessera.data")
    for run in list(settings.runs.iterdir()):
        run.rename(settings.project / f"gone-{run.name}")
    assert upkeep.verify(settings) == []
    assert data not in [digest for digest, _ in upkeep.garbage(settings, 0)]
    store_of(settings).objects.remove(data)
    (settings.home / "cache" / place(data)).unlink()
    (problem,) = upkeep.verify(settings)
    assert (problem.digest, problem.versions) == (data, ("models:/m/1",))


@pytest.mark.parametrize("bucket", ["folder"], indirect=True)
def test_a_copy_of_a_project_looks_where_its_data_are_and_collects_nothing_there(
    settings: Settings, tmp_path: Path
) -> None:
    """Its runs go on with the store that they came from, in which there are data of people it knows nothing of."""
    foreign = store_of(settings).put("x", b"somebody's").digest
    shutil.copytree(settings.project, tmp_path / "copy", ignore=shutil.ignore_patterns(".tessera"))
    copy = Settings(project=tmp_path / "copy", home=Path(".tessera"))
    graph.create(copy.runs / "one", copy)
    assert upkeep.verify(copy, thorough=True) == []
    upkeep.collect(copy, upkeep.garbage(copy, 0), 0)
    assert not store_of(settings).missing([foreign])
    lost = leaf(settings, "a")
    store_of(settings).objects.remove(lost)
    (problem,) = upkeep.verify(copy)
    assert (problem.digest, problem.url) == (lost, store_of(settings).url)
    assert data_admin.repair(copy) == 0
    assert not store_of(settings).missing([lost])


# --------------------------------------------------------------------------------------------------------- repair


@pytest.mark.parametrize("where", ["cache", "outputs"])
def test_what_this_machine_has_is_put_back(settings: Settings, bucket: Bucket | None, where: str) -> None:
    lost, damaged = leaf(settings, "a"), leaf(settings, "b")
    if where == "outputs":
        for digest in (lost, damaged):
            (settings.home / "cache" / place(digest)).unlink()
    store_of(settings).objects.remove(lost)
    damage(settings, damaged, bucket)
    assert data_admin.repair(settings) == 0
    assert upkeep.verify(settings, thorough=True) == []
    assert store_of(settings).fetch(lost).read_bytes() == (settings.runs / "one/outputs/a/x.txt").read_bytes()


def test_a_tree_comes_back_with_its_leaves(settings: Settings) -> None:
    tree = tree_of(settings, "a")
    gone = {tree, *datasets.tree(store_of(settings), tree).values()}
    for digest in gone:
        store_of(settings).objects.remove(digest)
    assert {digest for digest, _, _ in found(settings)} >= gone
    assert data_admin.repair(settings) == 0
    assert upkeep.verify(settings, thorough=True) == []


def test_a_tree_does_not_come_back_without_its_leaves(settings: Settings) -> None:
    """Else DVC, and the next run, would take it as proof that they are there."""
    tree, lost = tree_of(settings, "a"), leaf(settings, "a")
    for digest in (tree, lost):
        store_of(settings).objects.remove(digest)
    forget_here(settings, lost, "a")
    mended, left = upkeep.repair(settings, upkeep.verify(settings))
    assert mended == [] and {problem.digest for problem in left} == {tree, lost}
    assert store_of(settings).missing([tree]) == {tree}


def test_of_what_is_nowhere_the_tree_goes_and_the_next_run_mends_it(settings: Settings, capsys) -> None:
    tree, lost = tree_of(settings, "b"), leaf(settings, "b")
    store_of(settings).objects.remove(lost)
    forget_here(settings, lost, "b")
    assert data_admin.repair(settings) == 1
    assert "run again what made them: one" in " ".join(capsys.readouterr().out.split())
    assert store_of(settings).missing([tree]) == {tree}
    assert walk(settings.runs / "one")["b"] == "ran"
    with graph.open_graph(settings.runs / "one", settings) as opened:
        opened.push()
    assert upkeep.verify(settings, thorough=True) == []


# -------------------------------------------------------------------------------------------------------- garbage


def put(settings: Settings, data: bytes, bucket: Bucket | None) -> str:
    """An object that nobody refers to, written long ago where that can be said of it."""
    shard = store_of(settings).put("x", data)
    if not bucket:
        os.utime(Path(store_of(settings).url) / place(shard.digest), (LONG_AGO, LONG_AGO))
    return shard.digest


def test_only_what_nobody_refers_to_is_removed(settings: Settings, bucket: Bucket | None) -> None:
    orphan = put(settings, b"orphan", bucket)
    version(settings, "m", datasets.seal(store_of(settings), [store_of(settings).put("y", b"of a model")]).md5)
    before = {digest for digest, _, _ in store_of(settings).objects.every()}
    assert upkeep.garbage(settings, 0) == [(orphan, 6)]
    assert data_admin.gc(settings, 0, dry=True) == 0
    assert {digest for digest, _, _ in store_of(settings).objects.every()} == before
    assert data_admin.gc(settings, 0, dry=False) == 0
    assert {digest for digest, _, _ in store_of(settings).objects.every()} == before - {orphan}
    assert upkeep.verify(settings, thorough=True) == []


def test_outputs_of_earlier_settings_stay(settings: Settings) -> None:
    """A run goes back to them when its settings do."""
    run = settings.runs / "one"
    old = tree_of(settings, "c")
    (run / "events").mkdir(exist_ok=True)
    event = {"eventTime": "1", "job": {"name": "c"}, "inputs": [], "outputs": [{"name": old, "facets": {}}]}
    (run / "events" / "c-1.json").write_text(json.dumps(event))
    finished(settings, "one", c="{size: 9}")
    assert tree_of(settings, "c") != old
    assert upkeep.garbage(settings, 0) == []


def test_what_is_young_stays(settings: Settings) -> None:
    young = store_of(settings).put("x", b"young").digest
    assert upkeep.garbage(settings, 24) == []
    assert upkeep.garbage(settings, 0) == [(young, 5)]


@pytest.mark.parametrize("bucket", ["folder"], indirect=True)
def test_a_removed_run_leaves_its_objects_to_the_collector(settings: Settings) -> None:
    finished(settings, "two", c="{size: 5}")
    gone = {digest for digest, _, _ in store_of(settings).objects.every()}
    cleanup.remove(settings, [settings.runs / "two"])
    gone -= {digest for digest, _, _ in store_of(settings).objects.every()}
    assert gone  # in a folder it does so itself
    assert upkeep.garbage(settings, 0) == []
    assert upkeep.verify(settings, thorough=True) == []


@pytest.mark.parametrize("bucket", ["folder"], indirect=True)
def test_while_work_goes_on_nothing_is_taken_that_it_wrote(settings: Settings, bucket: Bucket | None) -> None:
    """Work that has run for longer than the grace time: its first shards are old, and named nowhere yet."""
    orphan = put(settings, b"shard of running work", bucket)
    older = put(settings, b"older than that work", bucket)
    os.utime(Path(store_of(settings).url) / place(older), (LONG_AGO - 3600, LONG_AGO - 3600))
    work = settings.runs / "one" / "work" / "b"
    work.mkdir(parents=True)
    (work / "body.lock").write_text("1")
    os.utime(work / "body.lock", (LONG_AGO - 60, LONG_AGO - 60))
    (work / "progress.json").write_text("{}")
    assert [digest for digest, _ in upkeep.garbage(settings, 24)] == [older]
    os.utime(work / "progress.json", (LONG_AGO, LONG_AGO))  # it has died
    assert sorted(digest for digest, _ in upkeep.garbage(settings, 24)) == sorted([orphan, older])


@pytest.mark.parametrize("bucket", ["folder"], indirect=True)
def test_finished_parts_of_an_interrupted_stage_stay(settings: Settings, bucket: Bucket | None) -> None:
    shard = put(settings, b"a part", bucket)
    about = settings.runs / "one" / "work" / "a" / "parts" / "00000-x" / "about.json"
    write_bytes_atomic(about, json.dumps({"stored": [{"name": "x", "digest": shard, "size": 6}]}).encode())
    assert upkeep.garbage(settings, 24) == []


@pytest.mark.parametrize("bucket", ["folder"], indirect=True)
def test_what_is_put_again_meanwhile_stays(settings: Settings, bucket: Bucket | None) -> None:
    orphan = put(settings, b"orphan", bucket)
    doomed = upkeep.garbage(settings, 24)
    assert doomed == [(orphan, 6)]
    store_of(settings).put("x", b"orphan")
    assert upkeep.collect(settings, doomed, 24) == {}
    assert not store_of(settings).missing([orphan])


def test_nothing_is_collected_while_a_list_of_files_is_lost(settings: Settings) -> None:
    tree = tree_of(settings, "a")
    store_of(settings).objects.remove(tree)
    (settings.home / "cache" / place(tree)).unlink()
    with pytest.raises(upkeep.UpkeepError, match="cannot be told from garbage"):
        upkeep.garbage(settings, 0)


def test_a_sealed_output_is_needed_and_expected(settings: Settings) -> None:
    """Before its run has ended, too: it is nowhere else."""
    store = store_of(settings)
    run = make_run(settings, "large", a="{size: 77}")
    sealed: Sealed = datasets.seal(store, [store.put("x.txt", b"seventy-seven")])
    with graph.open_graph(run, settings) as opened:
        write_bytes_atomic(run / "work" / "a" / datasets.SEALED, datasets.note(sealed))
        write_bytes_atomic(run / "metrics" / "a.json", b"{}")
        opened.node("a").commit()
    lost = datasets.tree(store, sealed.md5)["x.txt"]
    assert upkeep.garbage(settings, 0) == []
    store.objects.remove(lost)
    assert found(settings) == [(lost, "missing", "x.txt")]
