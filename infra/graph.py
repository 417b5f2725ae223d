"""A run as a DVC project of its own, walked and committed from Python; `dvc repro` in the folder agrees.

    with open_graph(run) as graph:
        for node in graph.stages:              # topological order
            if node.why() and not node.restore():
                ...                            # make the outputs
                node.commit()

An output that its body wrote straight into the store (`infra.datasets`) need not be in the folder: `work/<stage>/sealed.json`
names it, and it counts as present while the store has it.

The commit hashes outputs into the shared cache, then replaces `dvc.lock` atomically (DVC's own writer truncates the file
first, and a torn lock stops every later command). The graph of a run is small and separate from every other run's, so
that walking and committing cost the same however many runs a project has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from infra import datasets, run_cache
from infra.settings import Settings, environment
from infra.storage import write_bytes_atomic, yaml_bytes

LOCK = "dvc.lock"


class GraphError(RuntimeError):
    """A run folder that is not what it should be; the message says what to do."""

    user_error = True


def create(run: Path, settings: Settings) -> None:
    """Makes `run` a DVC project that shares cache and remote with all others. Idempotent; safe to be interrupted.

    The files are what `dvc init --subdir` and `dvc config` write; writing them takes a millisecond instead of a process."""
    git = _versioned(run, settings.project)
    home = settings.home
    remote = _remote(run, settings)
    lines = [
        "[core]",
        "    remote = tessera",
        "    analytics = false",
        "    autostage = false",
        *([] if git else ["    no_scm = True"]),
        "[cache]",
        f"    dir = {os.path.relpath(home / 'cache', run / '.dvc')}",
        "    type = reflink,copy",  # a hard link would let a changed output change the cache
        "['remote \"tessera\"']",
        f"    url = {remote}",
        *(["    verify = true"] if remote.startswith("s3://") else []),
    ]
    (run / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    _write_once(run / ".dvc" / "config", "\n".join(lines) + "\n")
    _write_once(run / ".dvc" / ".gitignore", "/config.local\n/tmp\n/cache\n")
    _write_once(run / ".dvcignore", "/work\n/events\n/report.html\n")
    _write_once(run / ".gitignore", "/outputs\n/metrics\n/plots\n/work\n/report.html\n")


def _remote(run: Path, settings: Settings) -> str:
    """The URL for the run's configuration. A folder is absolute, so that a clone of the project finds it, too; and what a
    clone finds there it keeps, unless its settings name another remote."""
    if settings.remote.startswith("s3://"):
        return settings.remote
    own = settings.home / "remote"
    if Path(settings.remote) == own and (run / ".dvc" / "config").is_file():
        config = ConfigParser(interpolation=None)
        with contextlib.suppress(ConfigError):
            config.read(run / ".dvc" / "config")
        known = config.get("'remote \"tessera\"'", "url", fallback="")
        if known and "://" not in known and (run / ".dvc" / known).is_dir():
            return os.path.abspath(run / ".dvc" / known)
    return os.path.abspath(settings.project / settings.remote)


def _versioned(run: Path, project: Path) -> bool:
    """Whether git keeps this run: DVC refuses a graph that git ignores, unless it is told to look away from git."""
    if not (project / ".git").exists():
        return False
    asked = subprocess.run(["git", "check-ignore", "-q", str(run / "dvc.yaml")], cwd=project, capture_output=True)
    return asked.returncode == 1


def _write_once(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        write_bytes_atomic(path, text.encode())


class StageNode:
    """One stage of a run."""

    def __init__(self, graph: RunGraph, stage: Any) -> None:
        self._graph, self._stage = graph, stage
        self.name: str = stage.name
        self.upstream: list[str] = []

    @property
    def params(self) -> dict[str, Any]:
        """The recipe sections this stage reads, by dotted name."""
        from dvc.dependency import ParamsDependency

        found: dict[str, Any] = {}
        for dep in self._stage.deps:
            if isinstance(dep, ParamsDependency):
                found |= dep.read_params(flatten=True)
        return {name: _plain(value) for name, value in found.items()}

    @property
    def trains(self) -> bool:
        """Whether a section of this stage has a `train` of its own."""
        return any(isinstance(value, dict) and "train" in value for value in self.params.values())

    @property
    def deps(self) -> dict[str, str]:
        """Content hash of each input path; they must be there."""
        from dvc.dependency import ParamsDependency

        found = {}
        for dep in self._stage.deps:
            if not isinstance(dep, ParamsDependency):
                if sealed := self._graph.sealed(dep):
                    found[dep.def_path] = sealed.md5
                    continue
                if not dep.exists:
                    raise GraphError(f"{self._graph.run.name}: {dep.def_path}, an input of {self.name}, is not there")
                found[dep.def_path] = dep.get_hash().value
        return found

    @property
    def outs(self) -> dict[str, str]:
        """Content hash of each output, as last committed."""
        return {out.def_path: out.hash_info.value for out in self._stage.outs if out.hash_info}

    def why(self) -> dict[str, str]:
        """Why this stage has to run; empty when its outputs are what its inputs and sections make."""
        reasons: dict[str, str] = {}
        if not self._graph.locked(self.name):
            return {"never ran": "no outputs were committed"}
        if self._stage.changed_stage():
            reasons["command"] = "changed"
        for item in [*self._stage.deps, *self._stage.outs]:
            if sealed := self._graph.sealed(item):
                reasons |= self._stored(item, sealed)
                continue
            for path, state in item.status().items():
                reasons |= self._explain(item, path, state)
        return reasons

    def _stored(self, item: Any, sealed: datasets.Sealed) -> dict[str, str]:
        """What is wrong with an output or input that is in the store."""
        if item not in self._stage.outs:
            same = item.hash_info and item.hash_info.value == sealed.md5
            return {} if same else {f"input {item.def_path}": "modified"}
        if not item.hash_info or item.hash_info.value != sealed.md5:
            return {f"output {item.def_path}": "not committed"}
        if not datasets.whole(self._graph.store, sealed.md5):
            return {f"output {item.def_path}": "missing from the store"}
        return {}

    def _explain(self, item: Any, path: str, state: Any) -> dict[str, str]:
        if not isinstance(state, dict):
            kind = "output" if item in self._stage.outs else "input"
            return {f"{kind} {item.def_path}": "missing" if state == "deleted" else str(state)}
        before = self._graph.locked_params(self.name)
        now = self.params
        reasons: dict[str, str] = {}
        for name in state:
            reasons |= _differences(name, before.get(name), now.get(name))
        return reasons or {path: "changed"}

    def key(self) -> str:
        """The stage key: what goes in, nothing of where or when."""
        content = json.dumps([self.name, self._stage.cmd, self.params, self.deps], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def restore(self) -> bool:
        """Takes the outputs from the shared cache or the store: what was committed here and is only gone (a clone
        begins without it), or what any run has made from the same inputs."""
        from dvc.exceptions import DvcException

        known = [(dep, dep.hash_info, dep.meta) for dep in self._stage.deps]
        restored = False
        # a cache that lost an object: the stage runs instead
        with contextlib.suppress(DvcException, FileNotFoundError), self._graph.locked_repo():
            restored = self._recover() or run_cache.restore(self._graph.repo, self._stage, self._save_deps, self._fetch)
        # what was looked up counts as committed otherwise, and a failed body's retry would find no change
        if not restored:
            for dep, digest, meta in known:
                dep.hash_info, dep.meta = digest, meta
        return restored

    def _recover(self) -> bool:
        """Brings outputs back to what was committed; False if anything else changed, or one is nowhere."""
        outs = {f"output {out.def_path}": out for out in self._stage.outs}
        reasons = self.why()
        if not reasons or not reasons.keys() <= outs.keys():
            return False
        for out in (outs[name] for name in reasons):
            if out.exists and out.get_hash() == out.hash_info:  # only the cache has lost it; the commit puts it there
                continue
            if not out.changed_cache():
                out.checkout(force=True)
            elif not self._fetch(out):
                return False
        return True

    def commit(self) -> None:
        """Outputs into the cache, then the lock. Raises GraphError when an output is not there."""
        from dvc.stage.serialize import to_lockfile

        for out in self._stage.outs:
            if not out.exists and not self._graph.sealed(out):
                raise GraphError(f"{self._graph.run.name}: the stage {self.name} left no {out.def_path}")
        with self._graph.locked_repo():
            self._save_deps()
            for out in self._stage.outs:
                if sealed := self._graph.sealed(out):
                    self._graph.take(out, sealed)
                else:
                    out.save()
            self._stage.md5 = self._stage.compute_md5()
            self._stage.commit(allow_missing=True)  # what is in the store only
            run_cache.remember(self._graph.repo, self._stage)
            self._graph.write_lock(to_lockfile(self._stage))

    def _save_deps(self) -> None:
        """The content hashes of the inputs as they are now."""
        for dep in self._stage.deps:
            if sealed := self._graph.sealed(dep):
                self._graph.take(dep, sealed)
            else:
                dep.save()

    def _fetch(self, out: Any) -> bool:
        """Takes an output from the store that the cache has not: a small one into the run's folder, of a large data set
        its name. False if the store has not all of it."""
        store = self._graph.store
        if not out.hash_info:
            return False
        digest = out.hash_info.value
        if out.hash_info.isdir:
            if out.def_path != f"outputs/{self.name}" or not datasets.whole(store, digest):
                return False
            self._graph.keep(self.name, out, digest)
            return True
        if store.missing([digest]):
            return False
        write_bytes_atomic(Path(out.fs_path), store.fetch(digest).read_bytes())
        return True


class RunGraph:
    """The stages of one run in topological order."""

    def __init__(self, run: Path, repo: Any, settings: Settings) -> None:
        self.run, self.repo = run, repo
        loaded = repo.stage.load_all(str(run / "dvc.yaml"))
        nodes = {stage.name: StageNode(self, stage) for stage in loaded}
        producer = {out.fs_path: stage.name for stage in loaded for out in stage.outs}
        for stage in loaded:
            upstream = [producer[dep.fs_path] for dep in stage.deps if getattr(dep, "fs_path", None) in producer]
            nodes[stage.name].upstream = upstream
        self.stages = _topological(nodes)
        self._nodes = nodes
        self._lock: dict[str, Any] | None = None
        self._producer = producer
        self.settings = settings

    @cached_property
    def store(self) -> datasets.Store:
        return datasets.of_run(self.run, self.settings)

    def sealed(self, item: Any) -> datasets.Sealed | None:
        """What names an output or input that is in the store and not in the run's folder."""
        stage = self._producer.get(getattr(item, "fs_path", None))
        if stage is None or item.def_path != f"outputs/{stage}" or os.path.exists(item.fs_path):
            return None
        return datasets.sealed(self.run, stage)

    def take(self, item: Any, sealed: datasets.Sealed) -> None:
        """Gives an output or input the hash of what is in the store, and DVC's cache the tree object."""
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        item.hash_name = "md5"
        item.hash_info = HashInfo("md5", sealed.md5)
        item.meta = Meta(isdir=True, size=sealed.size, nfiles=sealed.nfiles)
        cache = self.repo.cache.local
        if not cache.exists(sealed.md5):
            cache.add_bytes(sealed.md5, datasets.tree_bytes(datasets.tree(self.store, sealed.md5)))
            cache.protect(cache.oid_to_path(sealed.md5))

    def keep(self, stage: str, out: Any, tree: str) -> None:
        """Makes a tree of the store the output of a stage: a small one as a folder of the run, of a large one its name."""
        size = out.meta.size if out.meta and out.meta.size else 0
        if size <= self.settings.local_data_mb << 20:
            datasets.materialize(self.run, stage, self.settings, tree)
            return
        sealed = datasets.Sealed(tree, len(datasets.tree(self.store, tree)), size)
        write_bytes_atomic(self.run / "work" / stage / datasets.SEALED, datasets.note(sealed))
        shutil.rmtree(out.fs_path, ignore_errors=True)

    def node(self, name: str) -> StageNode:
        return self._nodes[name]

    @contextmanager
    def locked_repo(self) -> Iterator[None]:
        """DVC's repository lock, waited for; a table of path locks torn by a kill is dropped.

        DVC's run cache resolves paths against the working directory, so that is the run's folder meanwhile."""
        with self.repo.lock, contextlib.chdir(self.run):
            self._mend_path_locks()
            yield

    def _mend_path_locks(self) -> None:
        """DVC writes the table in place; one that was torn by a kill stops every later command until it is removed."""
        from dvc.lock import make_lock
        from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
        from voluptuous import Invalid

        folder = Path(self.repo.tmp_dir)
        table = folder / RWLOCK_FILE
        if not table.is_file():
            return
        with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder), wait=True):  # nobody is writing it now
            try:
                SCHEMA(json.loads(table.read_text()))
            except (json.JSONDecodeError, Invalid):
                table.unlink()

    def _read_lock(self) -> dict[str, Any]:
        if self._lock is None:
            from ruamel.yaml import YAML, YAMLError

            path = self.run / LOCK
            try:
                self._lock = YAML(typ="safe").load(path) if path.is_file() else None
            except YAMLError as error:
                raise GraphError(f"{path} cannot be read ({error}); remove it and run again") from error
            self._lock = self._lock or {"schema": "2.0", "stages": {}}
        return self._lock

    def locked(self, name: str) -> bool:
        return name in self._read_lock()["stages"]

    def locked_params(self, name: str) -> dict[str, Any]:
        sections: dict[str, Any] = {}
        for values in self._read_lock()["stages"].get(name, {}).get("params", {}).values():
            sections |= values
        return sections

    def write_lock(self, stages: dict[str, Any]) -> None:
        self._lock = None
        lock = self._read_lock()
        lock["stages"] = {**lock["stages"], **{name: _plain(entry) for name, entry in stages.items()}}
        write_bytes_atomic(self.run / LOCK, yaml_bytes(lock))

    def push(self) -> int:
        """The committed outputs into the remote; returns the number of new objects."""
        self._forget_broken_trees()
        with contextlib.chdir(self.run):
            return self.repo.push(targets=[str(self.run / "dvc.yaml")], run_cache=False)

    def _forget_broken_trees(self) -> None:
        """Removes from the remote each tree object of this run of which a leaf is gone.

        DVC takes a tree object as proof that its leaves are there, too, and would never push them again."""
        for digest in {out.hash_info.value for node in self.stages for out in node._stage.outs if _is_tree(out)}:
            try:
                broken = self.store.missing(datasets.tree(self.store, digest).values())
            except datasets.Damaged:
                broken = {digest}
            except datasets.StoreError:  # not there at all
                continue
            if broken:
                self.store.objects.remove(digest)


def _is_tree(out: Any) -> bool:
    return bool(out.hash_info and out.hash_info.isdir)


@contextmanager
def open_graph(run: Path, settings: Settings | None = None) -> Iterator[RunGraph]:
    """The graph of a run folder made by `create`. Without settings, those of the environment for the run's project."""
    if not (run / "dvc.yaml").is_file():
        raise GraphError(f"{run} is not a run: it has no dvc.yaml")
    from dvc.repo import Repo

    (run / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    lock_torn(run)
    _parse_once()
    with Repo(str(run), _wait_for_lock=True) as repo:
        yield RunGraph(run, repo, settings or Settings(project=run.parent.parent))


def _parse_once() -> None:
    """DVC reads the whole recipe whenever it looks at a section, a dozen times a stage; parsed is only what has changed."""
    from dvc.dependency import param

    parse = param.load_path
    if hasattr(parse, "cache_clear"):
        return

    @lru_cache(maxsize=4)
    def parsed(path: str, fs: Any, _changed: tuple[int, int]) -> Any:
        return parse(path, fs)

    def load(path: str, fs: Any, **how: Any) -> Any:
        if how or not os.path.isfile(path):
            return parse(path, fs, **how)
        status = os.stat(path)
        return deepcopy(parsed(path, fs, (status.st_mtime_ns, status.st_size)))

    load.cache_clear = parsed.cache_clear  # type: ignore[attr-defined]
    param.load_path = load


def lock_torn(run: Path) -> bool:
    """Sets a `dvc.lock` aside that another program left torn; its stages then run again or come from the cache."""
    path = run / LOCK
    if not path.is_file():
        return False
    from ruamel.yaml import YAML, YAMLError

    try:
        content = YAML(typ="safe").load(path)
        torn = not isinstance(content, dict) or not isinstance(content.get("stages"), dict)
    except YAMLError:
        torn = True
    if torn:
        os.replace(path, path.with_name(f"{LOCK}.torn"))
    return torn


def _topological(nodes: dict[str, StageNode]) -> list[StageNode]:
    """Inputs before what reads them; otherwise in the order of the file."""
    done: dict[str, StageNode] = {}

    def visit(name: str) -> None:
        if name not in done:
            for parent in nodes[name].upstream:
                visit(parent)
            done[name] = nodes[name]

    for name in nodes:
        visit(name)
    return list(done.values())


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _differences(name: str, before: Any, now: Any) -> dict[str, str]:
    """`{"tokenizer.quantizer.codebook_size": "1024 -> 2048"}`, down to the single values."""
    if isinstance(before, dict) and isinstance(now, dict):
        found: dict[str, str] = {}
        for key in dict.fromkeys([*before, *now]):
            found |= (
                _differences(f"{name}.{key}", before.get(key), now.get(key)) if before.get(key) != now.get(key) else {}
            )
        return found
    if name.startswith("code.") and before and now:  # "<code>-<sections>"; changed sections are named themselves
        return {} if before.partition("-")[0] == now.partition("-")[0] else {name: "the code changed"}
    if before == now:
        return {}
    return {name: f"{_short(before)} -> {_short(now)}"}


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def run_dvc(run: Path, settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """DVC's own command line in a run's folder."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=run, env=os.environ | environment(settings), capture_output=True, text=True)


__all__ = ["GraphError", "RunGraph", "StageNode", "create", "lock_torn", "open_graph", "run_dvc"]
