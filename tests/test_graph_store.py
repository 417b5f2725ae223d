"""A run whose outputs stay in the store: the same commits as with local folders, nothing downloaded to find that nothing
has changed, and DVC's own command line agrees. `a` and `b` stay in the store here, `c` is a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import datasets, graph
from infra.objects import place
from infra.settings import Settings, environment
from infra.storage import write_bytes_atomic
from tests import _s3
from tests._runs import STAGES, all_of, make_project, make_run, walk, write_recipe
from tests._s3 import Bucket

ROOT = Path(__file__).parent.parent
BEFORE = {"b": "a", "c": "b"}
STORED = ("a", "b")


@pytest.fixture(scope="module")
def moto() -> Iterator[Callable[[pytest.MonkeyPatch], Bucket]]:
    with _s3.serve() as fresh:
        yield fresh


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket | None:
    return request.getfixturevalue("moto")(monkeypatch) if request.param == "s3" else None


@pytest.fixture
def settings(bucket: Bucket | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project of somebody whose data are all too large for a run's folder."""
    if bucket:
        monkeypatch.setenv("TESSERA_REMOTE", f"{bucket.url}/data")
    monkeypatch.setenv("TESSERA_LOCAL_DATA_MB", "0")
    made = make_project(tmp_path / "project")
    for name, value in environment(made).items():
        monkeypatch.setenv(name, value)
    return made


def text(run: Path, stage: str, settings: Settings) -> str:
    """`x.txt` of an output, wherever it is."""
    local = run / "outputs" / stage / "x.txt"
    if local.is_file():
        return local.read_text()
    files = datasets.files(run, stage, settings)
    assert files is not None
    return files.path("x.txt").read_text()


def make(run: Path, stage: str, settings: Settings) -> None:
    """What the project's script makes, but `a` and `b` go straight into the store."""
    section = re.search(rf"^{stage}: (.*)$", (run / "recipe.yaml").read_text(), re.M)
    assert section is not None
    whole = section[1] + (text(run, BEFORE[stage], settings) if stage in BEFORE else "")
    content = {"x.txt": whole + "\n", "deep/same.txt": "same\n"}
    write_bytes_atomic(run / "metrics" / f"{stage}.json", json.dumps({"letters": len(whole)}).encode())
    with open(settings.project / "bodies.log", "a") as log:
        log.write(stage + "\n")
    output = run / "outputs" / stage
    shutil.rmtree(output, ignore_errors=True)
    if stage in STORED:
        store = datasets.of_run(run, settings)
        sealed = datasets.seal(store, [store.put(name, data.encode()) for name, data in content.items()])
        write_bytes_atomic(run / "work" / stage / datasets.SEALED, datasets.note(sealed))
        return
    for name, data in content.items():
        write_bytes_atomic(output / name, data.encode())


def walk_stored(run: Path, settings: Settings) -> dict[str, str]:
    states = {}
    with graph.open_graph(run, settings) as opened:
        for node in opened.stages:
            if not node.why():
                states[node.name] = "cached"
                continue
            states[node.name] = "restored" if node.restore() else "ran"
            if states[node.name] == "ran":
                make(run, node.name, settings)
            node.commit()
    return states


def reasons(run: Path, settings: Settings) -> dict[str, dict[str, str]]:
    with graph.open_graph(run, settings) as opened:
        return {node.name: node.why() for node in opened.stages}


def dvc(run: Path, settings: Settings, *arguments: str) -> str:
    done = graph.run_dvc(run, settings, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def locked(run: Path) -> object:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(run / "dvc.lock")


def digests(run: Path, settings: Settings, stage: str) -> dict[str, str]:
    """ "" -> the tree, and the files of an output that is in the store."""
    sealed = datasets.sealed(run, stage)
    assert sealed is not None
    return {"": sealed.md5, **datasets.tree(datasets.of_run(run, settings), sealed.md5)}


def lose(run: Path, settings: Settings, digest: str) -> None:
    datasets.of_run(run, settings).objects.remove(digest)


def moved(bucket: Bucket, method: str, found: dict[str, str]) -> list[str]:
    """The requests that carried these objects."""
    keys = [place(digest) for digest in found.values()]
    return [r for r in bucket.proxy.requests if r.startswith(f"{method} ") and any(key in r for key in keys)]


def clone(settings: Settings, run: Path, target: Path) -> tuple[Path, Settings]:
    """What git would bring: the small files of the run, and where the remote is."""
    copy = target / "runs" / run.name
    copy.mkdir(parents=True)
    for name in ("dvc.yaml", "dvc.lock", "recipe.yaml"):
        shutil.copy(run / name, copy / name)
    there = Settings(project=target, home=Path(".tessera"), remote=settings.remote)
    graph.create(copy, there)
    return copy, there


# ------------------------------------------------------------------------------------------------------ committing


def test_every_stage_runs_once_then_nothing(settings: Settings) -> None:
    run = make_run(settings, "one")
    assert walk_stored(run, settings) == all_of("ran")
    assert walk_stored(run, settings) == all_of("cached")
    assert [(run / "outputs" / stage).exists() for stage in STAGES] == [False, False, True]


def test_the_lock_is_that_of_a_run_with_all_of_it_in_its_folder(settings: Settings, tmp_path: Path) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    plain = make_project(tmp_path / "plain")
    other = make_run(plain, "one")
    walk(other)
    assert locked(run) == locked(other)
    with graph.open_graph(run, settings) as ours, graph.open_graph(other, plain) as theirs:
        assert [node.key() for node in ours.stages] == [node.key() for node in theirs.stages]


def test_only_what_reads_a_changed_section_runs(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    write_recipe(run, c="{size: 2}")
    assert reasons(run, settings) == {"a": {}, "b": {}, "c": {"c.size": "1 -> 2"}}
    assert walk_stored(run, settings) == {"a": "cached", "b": "cached", "c": "ran"}
    write_recipe(run, a="{size: 3}", c="{size: 2}")
    assert walk_stored(run, settings) == all_of("ran")
    assert "{size: 3}" in text(run, "c", settings)
    write_recipe(run, c="{size: 2}")  # and back: in the store still
    assert walk_stored(run, settings) == all_of("restored")
    assert "{size: 3}" not in text(run, "b", settings)


def test_a_note_without_a_commit_is_no_commit(settings: Settings) -> None:
    """Killed between the body and the commit."""
    run = make_run(settings, "one")
    make(run, "a", settings)
    assert reasons(run, settings)["a"] == {"never ran": "no outputs were committed"}
    assert walk_stored(run, settings) == all_of("ran")
    write_recipe(run, a="{size: 2}")
    make(run, "a", settings)
    assert reasons(run, settings)["a"]["output outputs/a"] == "not committed"
    assert walk_stored(run, settings)["a"] == "ran"
    assert walk_stored(run, settings) == all_of("cached")


# ------------------------------------------------------------------------------------------------------ what is lost


@pytest.mark.parametrize("what", ["", "x.txt"], ids=["tree", "leaf"])
def test_an_output_that_the_store_lost_is_noticed_and_made_again(settings: Settings, what: str) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    before = locked(run)
    lose(run, settings, digests(run, settings, "b")[what])
    assert reasons(run, settings)["b"] == {"output outputs/b": "missing from the store"}
    assert reasons(run, settings)["c"] == {}
    assert walk_stored(run, settings)["b"] == "ran"
    assert walk_stored(run, settings) == all_of("cached")
    assert locked(run) == before


def test_a_leaf_of_several_outputs_is_made_once(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    lose(run, settings, digests(run, settings, "b")["deep/same.txt"])
    lost = {stage: {f"output outputs/{stage}": "missing from the store"} for stage in STORED}
    assert reasons(run, settings) == {**lost, "c": {}}
    assert walk_stored(run, settings) == {"a": "ran", "b": "cached", "c": "cached"}


def test_a_run_without_its_notes_finds_its_outputs_in_the_store(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    shutil.rmtree(run / "work")
    assert list(reasons(run, settings)["a"]) == ["output outputs/a"]
    assert walk_stored(run, settings) == {"a": "restored", "b": "restored", "c": "cached"}
    assert walk_stored(run, settings) == all_of("cached")


def test_a_clone_takes_everything_from_the_store_and_makes_nothing(settings: Settings, tmp_path: Path) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    with graph.open_graph(run, settings) as opened:
        opened.push()
    made = (settings.project / "bodies.log").read_text()
    copy, there = clone(settings, run, tmp_path / "clone")
    assert walk_stored(copy, there) == all_of("restored")
    assert walk_stored(copy, there) == all_of("cached")
    assert (settings.project / "bodies.log").read_text() == made
    assert not (there.project / "bodies.log").exists()
    assert locked(copy) == locked(run)
    for stage in STAGES:
        assert text(copy, stage, there) == text(run, stage, settings)


# -------------------------------------------------------------------------------------------------------- with DVC


def test_dvc_finds_nothing_to_do(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    with graph.open_graph(run, settings) as opened:
        opened.push()
    made = (settings.project / "bodies.log").read_text()
    assert "up to date" in dvc(run, settings, "repro", "--pull", "--allow-missing", "--dry")
    assert "Running stage" not in dvc(run, settings, "repro", "--pull", "--allow-missing")
    assert (settings.project / "bodies.log").read_text() == made
    assert walk_stored(run, settings) == all_of("cached")


def test_dvc_pull_in_a_clone_brings_the_bytes(settings: Settings, tmp_path: Path) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    with graph.open_graph(run, settings) as opened:
        opened.push()
    copy, there = clone(settings, run, tmp_path / "clone")
    dvc(copy, there, "pull")
    for stage in STAGES:
        assert (copy / "outputs" / stage / "x.txt").read_text() == text(run, stage, settings)
        assert (copy / "outputs" / stage / "deep" / "same.txt").read_text() == "same\n"
    assert "up to date" in dvc(copy, there, "status")
    assert walk_stored(copy, there) == all_of("cached")


def test_push_neither_fails_nor_sends_again_what_is_there(settings: Settings, bucket: Bucket | None) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    if bucket:
        bucket.proxy.requests.clear()
    with graph.open_graph(run, settings) as opened:
        assert opened.push() > 0  # the folder of c, and the metrics
        assert opened.push() == 0
    if bucket:
        assert not moved(bucket, "PUT", digests(run, settings, "b"))
        assert not moved(bucket, "GET", {name: d for name, d in digests(run, settings, "b").items() if name})


def test_push_after_a_loss_does_not_fail_and_does_not_lie(settings: Settings) -> None:
    """A tree that stays in the store without its leaf would make DVC believe that the leaf is there."""
    run = make_run(settings, "one")
    walk_stored(run, settings)
    found = digests(run, settings, "b")
    lose(run, settings, found["x.txt"])
    with graph.open_graph(run, settings) as opened:
        opened.push()
    assert datasets.of_run(run, settings).missing([found[""]]) == {found[""]}
    assert walk_stored(run, settings)["b"] == "ran"
    with graph.open_graph(run, settings) as opened:
        opened.push()
    assert datasets.whole(datasets.of_run(run, settings), found[""])


def test_push_mends_what_is_in_the_folder(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    with graph.open_graph(run, settings) as opened:
        opened.push()
        tree = opened.node("c").outs["outputs/c"]
    store = datasets.of_run(run, settings)
    lose(run, settings, datasets.tree(store, tree)["x.txt"])
    with graph.open_graph(run, settings) as opened:
        assert opened.push() > 0
    assert datasets.whole(store, tree)


# ------------------------------------------------------------------------------------------------------ other runs


def test_another_run_takes_the_name_and_no_byte(settings: Settings, bucket: Bucket | None) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    found = {name: digest for name, digest in digests(run, settings, "b").items() if name}
    if bucket:
        bucket.proxy.requests.clear()
    other = make_run(settings, "two")
    assert walk_stored(other, settings) == all_of("restored")
    assert locked(other) == locked(run)
    assert not (other / "outputs" / "b").exists()
    if bucket:
        assert not moved(bucket, "GET", found)
    lose(run, settings, found["x.txt"])
    assert walk_stored(make_run(settings, "three"), settings)["b"] == "ran"


def test_a_small_output_is_put_into_the_folder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    roomy = settings.model_copy(update={"local_data_mb": 1})
    other = make_run(roomy, "two")
    assert walk_stored(other, roomy) == all_of("restored")
    assert (other / "outputs/a/x.txt").read_text() == text(run, "a", settings)
    assert datasets.sealed(other, "a") is None
    assert "up to date" in dvc(other, roomy, "status")


def test_a_run_with_folders_gives_to_one_with_names(settings: Settings) -> None:
    plain = make_run(settings, "plain")
    walk(plain)
    other = make_run(settings, "one")
    assert walk_stored(other, settings) == all_of("restored")  # from the cache: it has the bytes
    assert (other / "outputs/a/x.txt").is_file()


# -------------------------------------------------------------------------------------------------- into the folder


def test_a_materialized_output_is_unchanged_for_dvc(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    expected = text(run, "a", settings)
    for stage in STORED:
        assert datasets.materialize(run, stage, settings) == run / "outputs" / stage
    assert (run / "outputs/a/x.txt").read_text() == expected
    assert sorted(path.name for path in (run / "outputs").iterdir()) == list(STAGES)
    assert datasets.sealed(run, "a") is None
    assert walk_stored(run, settings) == all_of("cached")
    assert "up to date" in dvc(run, settings, "status")
    os.chmod(run / "outputs/a/x.txt", 0o644)
    (run / "outputs/a/x.txt").write_text("altered")
    assert "output outputs/a" in reasons(run, settings)["a"]


def test_a_broken_data_set_is_not_materialized(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    lose(run, settings, digests(run, settings, "a")["x.txt"])
    shutil.rmtree(settings.home / "shards", ignore_errors=True)
    with pytest.raises(datasets.StoreError, match=r"x\.txt of the data set"):
        datasets.materialize(run, "a", settings)
    assert not (run / "outputs/a").exists()
    assert datasets.sealed(run, "a") is not None
    with pytest.raises(datasets.StoreError, match="has no zebra in the store"):
        datasets.materialize(run, "zebra", settings)


def test_reading_an_output_needs_no_dvc(settings: Settings, tmp_path: Path) -> None:
    run = make_run(settings, "one")
    walk_stored(run, settings)
    copy, _ = clone(settings, run, tmp_path / "clone")
    code = (
        "import sys\nfrom pathlib import Path\nfrom infra import datasets\nfrom infra.settings import Settings\n"
        "for run in sys.argv[1:]:\n"
        "    settings = Settings(project=Path(run).parent.parent)\n"
        "    print(datasets.files(Path(run), 'a', settings).names())\n"
        "print(any(name.partition('.')[0] in ('dvc', 'dvc_data', 's3fs', 'torch') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run), str(copy)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['deep/same.txt', 'x.txt']"] * 2 + ["False"], done.stderr
