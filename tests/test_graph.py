"""A run as a DVC project: what is stale and why, commits that survive crashes, agreement with DVC's own command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra import graph
from infra.settings import Settings, environment
from tests._runs import all_of, body, make_project, make_run, walk, write_recipe

ROOT = Path(__file__).parent.parent


both = pytest.mark.parametrize("settings", ["plain", "git"], indirect=True)  # the project is under git, or not


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    made = make_project(tmp_path / "project", git=getattr(request, "param", "plain") == "git")
    for name, value in environment(made).items():
        monkeypatch.setenv(name, value)
    return made


def bodies(settings: Settings) -> list[str]:
    log = settings.project / "bodies.log"
    return log.read_text().split() if log.is_file() else []


def reasons(run: Path) -> dict[str, dict[str, str]]:
    with graph.open_graph(run) as opened:
        return {node.name: node.why() for node in opened.stages}


def dvc(run: Path, settings: Settings, *arguments: str) -> str:
    done = graph.run_dvc(run, settings, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@both
def test_every_stage_runs_once_then_nothing(settings: Settings) -> None:
    run = make_run(settings, "one")
    assert reasons(run) == all_of({"never ran": "no outputs were committed"})  # type: ignore[arg-type]
    assert walk(run) == all_of("ran")
    assert walk(run) == all_of("cached")
    assert bodies(settings) == ["a", "b", "c"]


def test_create_is_idempotent(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk(run)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and "tmp" not in p.parts}
    graph.create(run, settings)
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and "tmp" not in p.parts}
    (run / ".dvc" / "config").unlink()  # interrupted half-way
    graph.create(run, settings)
    assert walk(run) == all_of("cached")


@both
def test_a_changed_parameter_runs_only_its_stage(settings: Settings) -> None:
    run = make_run(settings, "one", c="{size: 1, kind: fine}")
    walk(run)
    write_recipe(run, c="{size: 2, kind: fine}")
    assert reasons(run) == {"a": {}, "b": {}, "c": {"c.size": "1 -> 2"}}
    assert walk(run) == {"a": "cached", "b": "cached", "c": "ran"}
    assert bodies(settings) == ["a", "b", "c", "c"]
    write_recipe(run, c="{size: 1, kind: fine}")  # and back: made before, so not made again
    assert walk(run) == {"a": "cached", "b": "cached", "c": "restored"}
    assert (run / "outputs/c/x.txt").read_text().startswith("{size: 1, kind: fine}")


def test_reasons_name_what_came_and_went(settings: Settings) -> None:
    run = make_run(settings, "one", a="{old: 1, same: 2}")
    walk(run)
    write_recipe(run, a="{new: [1, 2], same: 2}")
    assert reasons(run)["a"] == {"a.old": "1 -> none", "a.new": "none -> [1, 2]"}


def test_a_null_section_is_a_value(settings: Settings) -> None:
    run = make_run(settings, "one", b="null")
    assert walk(run) == all_of("ran")
    assert walk(run) == all_of("cached")
    write_recipe(run, b="{size: 1}")
    assert "b" in str(reasons(run)["b"])


@pytest.mark.parametrize("how", ["delete", "alter", "alter_same_size", "extra", "one_leaf"])
def test_an_altered_output_is_noticed_and_made_again(settings: Settings, how: str) -> None:
    run = make_run(settings, "one")
    walk(run)
    original = (run / "outputs/b/x.txt").read_bytes()
    if how == "delete":
        shutil.rmtree(run / "outputs/b")
    elif how == "alter":
        (run / "outputs/b/x.txt").write_text("something else entirely")
    elif how == "alter_same_size":
        (run / "outputs/b/x.txt").write_bytes(b"X" * len(original))
    elif how == "extra":
        (run / "outputs/b/extra.txt").write_text("more")
    else:
        (run / "outputs/b/deep/same.txt").unlink()
    assert any("output outputs/b" in reason for reason in reasons(run)["b"])
    assert walk(run)["b"] == "restored"
    assert (run / "outputs/b/x.txt").read_bytes() == original
    assert sorted(p.name for p in (run / "outputs/b").rglob("*")) == ["deep", "same.txt", "x.txt"]
    assert walk(run) == all_of("cached")
    other = make_run(settings, "two")  # the cache was not altered along with the output
    assert walk(other) == all_of("restored")
    assert (other / "outputs/b/x.txt").read_bytes() == original


def test_an_output_gone_from_the_cache_is_made_again(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk(run)
    shutil.rmtree(run / "outputs/a")
    shutil.rmtree(settings.home / "cache" / "files")
    assert walk(run)["a"] == "ran"
    assert (run / "outputs/a/x.txt").is_file()


def test_a_cache_that_was_emptied_is_filled_from_the_outputs(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk(run)
    shutil.rmtree(settings.home / "cache" / "files")
    assert walk(run) == all_of("restored")
    assert bodies(settings) == ["a", "b", "c"]
    assert walk(run) == all_of("cached")
    shutil.rmtree(run / "outputs")
    assert walk(run) == all_of("restored")


def test_the_same_stage_of_another_run_is_restored(settings: Settings) -> None:
    walk(make_run(settings, "one"))
    other = make_run(settings, "two", c="{size: 5}")
    assert walk(other) == {"a": "restored", "b": "restored", "c": "ran"}
    assert bodies(settings) == ["a", "b", "c", "c"]
    with graph.open_graph(other) as opened, graph.open_graph(settings.runs / "one") as first:
        assert opened.node("b").key() == first.node("b").key()
        assert opened.node("c").key() != first.node("c").key()
        assert opened.node("b").outs == first.node("b").outs


def test_a_look_into_the_cache_that_found_nothing_changes_nothing(settings: Settings) -> None:
    """A stage whose body fails is asked again, by the same process, whether it has to run."""
    run = make_run(settings, "one")
    walk(run)
    write_recipe(run, a="{size: 2}")
    with graph.open_graph(run) as opened:
        first, second = opened.node("a"), opened.node("b")
        body(run, "a")
        first.commit()
        before = second.why()
        assert before
        assert not second.restore()
        assert second.why() == before


def test_a_parameter_called_size_is_a_parameter(settings: Settings) -> None:
    """DVC's run cache looks away from every `size` and `nfiles`, so two sizes have one address in it."""
    walk(make_run(settings, "one", a="{image: {size: 16}}"))
    large = make_run(settings, "two", a="{image: {size: 32}}")
    assert walk(large)["a"] == "ran"
    assert "32" in (large / "outputs/a/x.txt").read_text()
    again = make_run(settings, "three", a="{image: {size: 16}}")
    assert walk(again) == all_of("restored")
    assert "16" in (again / "outputs/a/x.txt").read_text()


def test_two_sizes_with_equal_outputs_are_both_remembered(settings: Settings) -> None:
    def constant(run: Path, size: int) -> str:
        write_recipe(run, a=f"{{size: {size}}}")
        with graph.open_graph(run) as opened:
            node = opened.node("a")
            if not node.why():
                return "cached"
            if node.restore():
                node.commit()
                return "restored"
            (run / "outputs/a").mkdir(parents=True, exist_ok=True)
            (run / "metrics").mkdir(exist_ok=True)
            (run / "outputs/a/x.txt").write_text("always the same")
            (run / "metrics/a.json").write_text("{}")
            node.commit()
            return "ran"

    run = make_run(settings, "one")
    assert [constant(run, size) for size in (1, 2, 1, 2, 2)] == ["ran", "ran", "restored", "restored", "cached"]


@pytest.mark.slow
@both
def test_dvc_repro_agrees_after_a_walk(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk(run)
    assert "up to date" in dvc(run, settings, "repro", "--pull", "--allow-missing")
    assert "up to date" in dvc(run, settings, "status")
    assert bodies(settings) == ["a", "b", "c"]


@pytest.mark.slow
@both
def test_a_walk_agrees_after_dvc_repro(settings: Settings) -> None:
    run = make_run(settings, "one")
    dvc(run, settings, "repro")
    assert walk(run) == all_of("cached")
    write_recipe(run, b="{size: 9}")
    walk(run)
    write_recipe(run, b="{size: 9}", c="{size: 9}")
    dvc(run, settings, "repro")
    assert walk(run) == all_of("cached")


def test_the_lock_says_what_dvc_would_write(settings: Settings) -> None:
    from ruamel.yaml import YAML

    ours, theirs = make_run(settings, "one"), make_run(settings, "two")
    walk(ours)
    dvc(theirs, settings, "repro", "--no-run-cache")
    load = YAML(typ="safe").load
    assert load(ours / "dvc.lock") == load(theirs / "dvc.lock")


def test_killed_between_body_and_commit(settings: Settings) -> None:
    run = make_run(settings, "one")
    with graph.open_graph(run) as opened:
        body(run, opened.stages[0].name)
    assert not (run / "dvc.lock").exists()
    assert walk(run) == all_of("ran")
    assert walk(run) == all_of("cached")


_KILLED = """
import os, signal, sys
from pathlib import Path
from infra import graph
import infra.graph
def dies(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
where = sys.argv[2]
run = Path(sys.argv[1])
with graph.open_graph(run) as opened:
    if where == "lock":
        infra.graph.write_bytes_atomic = dies
    else:
        opened.stages[0]._stage.commit = dies
    opened.stages[0].commit()
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["lock", "cache"])
def test_killed_in_the_commit(settings: Settings, where: str) -> None:
    """The lock is held by the kernel for a process that lives; a killed one blocks nobody."""
    run = make_run(settings, "one")
    body(run, "a")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(run), where], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (run / "dvc.lock").exists()
    states = walk(run)
    assert states["a"] in ("ran", "restored")  # saved in the run cache before the lock was written
    assert walk(run) == all_of("cached")
    assert "up to date" in dvc(run, settings, "repro")


def test_a_torn_lock_is_set_aside(settings: Settings) -> None:
    run = make_run(settings, "one")
    walk(run)
    whole = (run / "dvc.lock").read_bytes()
    (run / "dvc.lock").write_bytes(whole[: len(whole) // 2] + b"\n  'unclosed")
    assert walk(run) == all_of("restored")
    assert (run / "dvc.lock").read_bytes() == whole
    assert bodies(settings) == ["a", "b", "c"]


@pytest.mark.parametrize("table", ["", "{", '{"x": ', '{"x": 1}', "dead"])
def test_a_torn_or_stale_table_of_path_locks_blocks_nobody(settings: Settings, table: str) -> None:
    run = make_run(settings, "one")
    if table == "dead":
        gone = subprocess.Popen(["true"])
        gone.wait()
        holder = {"pid": gone.pid, "cmd": "dvc repro"}
        table = json.dumps({"write": {str(run / "outputs/a"): holder}, "read": {str(run / "metrics/a.json"): [holder]}})
    (run / ".dvc/tmp").mkdir(parents=True, exist_ok=True)
    (run / ".dvc/tmp/rwlock").write_text(table)
    assert walk(run) == all_of("ran")


_WALK = "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); from _runs import walk; print(walk(Path(sys.argv[1])))"


@pytest.mark.slow
@both
def test_two_runs_at_once(settings: Settings) -> None:
    runs = [make_run(settings, f"r{i}", c=f"{{size: {i}}}") for i in range(4)]
    command = [sys.executable, "-c", _WALK]
    walkers = [
        subprocess.Popen([*command, str(run)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for run in runs
    ]
    for walker in walkers:
        _, errors = walker.communicate(timeout=120)
        assert walker.returncode == 0, errors
    for number, run in enumerate(runs):
        assert walk(run) == all_of("cached")
        assert f"size: {number}" in (run / "outputs/c/x.txt").read_text()


def test_a_missing_output_is_a_message(settings: Settings) -> None:
    run = make_run(settings, "one")
    with graph.open_graph(run) as opened, pytest.raises(graph.GraphError, match="left no outputs/a"):
        opened.stages[0].commit()


def test_a_folder_that_is_no_run(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(graph.GraphError, match=r"no dvc\.yaml"), graph.open_graph(tmp_path):
        pass


def _clone(settings: Settings, run: Path, target: Path) -> Settings:
    """What git would bring: the small files of the run, and where the remote is."""
    copy = target / "runs" / run.name
    copy.mkdir(parents=True)
    for name in ("dvc.yaml", "dvc.lock", "recipe.yaml"):
        shutil.copy(run / name, copy / name)
    shutil.copy(settings.project / "make.py", target / "make.py")
    there = Settings(project=target, home=Path(".tessera"), remote=settings.remote)
    graph.create(copy, there)
    return there


@pytest.mark.slow
@both
def test_pull_in_a_second_clone_brings_the_same_bytes(settings: Settings, tmp_path: Path) -> None:
    run = make_run(settings, "one")
    walk(run)
    with graph.open_graph(run) as opened:
        assert opened.push() > 0
        assert opened.push() == 0
    there = _clone(settings, run, tmp_path / "clone")
    copy = there.runs / "one"
    dvc(copy, there, "pull")
    files = [p.relative_to(run) for p in (run / "outputs").rglob("*") if p.is_file()]
    assert files
    assert all((copy / f).read_bytes() == (run / f).read_bytes() for f in files)
    assert walk(copy) == all_of("cached")


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["git"], indirect=True)
def test_pull_in_a_git_clone(settings: Settings, tmp_path: Path) -> None:
    """Nothing but `git clone` and `dvc pull`; afterwards a walk in the clone does nothing and keeps the remote."""
    run = make_run(settings, "one")
    walk(run)
    with graph.open_graph(run) as opened:
        opened.push()
    git = ["git", "-C", str(settings.project), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "a run"], check=True)
    subprocess.run(["git", "clone", "-q", str(settings.project), str(tmp_path / "clone")], check=True)
    there = Settings(project=tmp_path / "clone", home=Path(".tessera"))
    copy = there.runs / "one"
    dvc(copy, there, "pull")
    assert (copy / "outputs/c/x.txt").read_bytes() == (run / "outputs/c/x.txt").read_bytes()
    before = (copy / ".dvc/config").read_text()
    graph.create(copy, there)
    assert (copy / ".dvc/config").read_text() == before
    assert walk(copy) == all_of("cached")


def test_a_moved_project_finds_its_own_remote(settings: Settings, tmp_path: Path) -> None:
    walk(make_run(settings, "one"))
    settings.project.rename(tmp_path / "moved")
    moved = Settings(project=tmp_path / "moved", home=Path(".tessera"))
    graph.create(moved.runs / "one", moved)
    assert f"url = {moved.home / 'remote'}" in (moved.runs / "one/.dvc/config").read_text()
    assert walk(moved.runs / "one") == all_of("cached")


@pytest.mark.slow
def test_push_repairs_a_remote_that_lost_a_leaf(settings: Settings, tmp_path: Path) -> None:
    """DVC takes a tree object in the remote as proof that its leaves are there, too."""
    run = make_run(settings, "one")
    walk(run)
    with graph.open_graph(run) as opened:
        opened.push()
        tree = opened.node("b").outs["outputs/b"]
    remote = Path(settings.remote) / "files" / "md5"
    leaf = json.loads((remote / tree[:2] / tree[2:]).read_text())[-1]["md5"]
    lost = remote / leaf[:2] / leaf[2:]
    os.chmod(lost, 0o644)
    lost.unlink()
    with graph.open_graph(run) as opened:
        assert opened.push() > 0
    assert lost.is_file()
    there = _clone(settings, run, tmp_path / "clone")
    dvc(there.runs / "one", there, "pull")
