"""Keeping a store trustworthy: is everything there and unharmed, what can be mended, and what does nobody need any more.

What is needed: every tree that a run's `dvc.lock` or lineage names or a model version was made from, their leaves, and
what running work has written but not sealed yet. DVC's own `gc` knows the commits of one repository and nothing of the
others that share a remote, nor of running work: it must not be used here.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra import cleanup, datasets, registry
from infra.datasets import Store, StoreError
from infra.objects import md5_of, place
from infra.settings import Settings


@dataclass(frozen=True)
class Problem:
    """An object that is not as it should be, and whom that concerns."""

    digest: str
    state: str  # missing | damaged
    tree: str  # the data set that it belongs to; its own digest where that is the tree itself
    name: str  # its path in the data set
    runs: tuple[str, ...]
    versions: tuple[str, ...]  # models:/name/version

    def row(self) -> dict[str, Any]:
        return {
            "object": self.digest[:12],
            "state": self.state,
            "file": self.name,
            "runs": ", ".join(self.runs),
            "models": ", ".join(self.versions),
        }


@dataclass
class _Users:
    """Who needs a tree."""

    runs: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)


def verify(settings: Settings, thorough: bool = False) -> list[Problem]:
    """Looks for everything that runs and model versions need; `thorough` reads and hashes each object, too."""
    store = datasets.store(settings)
    problems: list[Problem] = []
    for tree, users in sorted(_trees(settings).items()):
        who = (tuple(sorted(users.runs)), tuple(sorted(users.versions)))
        try:
            entries = datasets.tree(store, tree)
        except StoreError as error:
            state = "damaged" if "damaged" in str(error) else "missing"
            if not pushed(settings, tree):
                continue  # a run that was never finished has not put its outputs there
            problems.append(Problem(tree, state, tree, "the list of its files", *who))
            continue
        lost = store.missing(entries.values())
        for name, digest in entries.items():
            if digest in lost:
                problems.append(Problem(digest, "missing", tree, name, *who))
            elif thorough and not _sound(store, digest):
                problems.append(Problem(digest, "damaged", tree, name, *who))
    return problems


def pushed(settings: Settings, tree: str) -> bool:
    """Whether a tree ought to be in the store: it stays there, or a run that has it is finished."""
    for run in _runs(settings):
        lock = (run / "dvc.lock").read_text() if (run / "dvc.lock").is_file() else ""
        if tree in lock and ((run / "report.html").is_file() or any(run.glob(f"work/*/{datasets.SEALED}"))):
            return True
    return False


def _sound(store: Store, digest: str) -> bool:
    own = store.objects.local(digest)
    if own is not None:
        return md5_of(own) == digest
    import hashlib

    return hashlib.md5(store.objects.get(digest), usedforsecurity=False).hexdigest() == digest


def _runs(settings: Settings) -> list[Path]:
    return [path for path in sorted(settings.runs.iterdir()) if path.is_dir()] if settings.runs.is_dir() else []


def _trees(settings: Settings) -> dict[str, _Users]:
    """Every tree that runs have committed, and who needs it."""
    from ruamel.yaml import YAML

    found: dict[str, _Users] = defaultdict(_Users)
    for run in _runs(settings):
        lock = YAML(typ="safe").load(run / "dvc.lock") if (run / "dvc.lock").is_file() else None
        for stage in (lock or {}).get("stages", {}).values():
            for out in stage.get("outs", []):
                if str(out.get("md5", "")).endswith(".dir"):
                    found[out["md5"]].runs.add(run.name)
    for model in registry.models(settings):
        for version in registry.versions(settings, model):
            data = version.tags.get("tessera.data", "")
            if data.endswith(".dir"):
                found[data].versions.add(f"models:/{model}/{version.version}")
    return found


def repair(settings: Settings, problems: Iterable[Problem]) -> tuple[list[Problem], list[Problem]]:
    """(mended, not to be mended). What this machine still has - in DVC's cache, in an output folder, in the cache of
    shards - is put back. Of a data set that stays broken the tree object is removed: DVC and the next run take it as
    proof that all is there."""
    store = datasets.store(settings)
    mended: list[Problem] = []
    left: list[Problem] = []
    for problem in problems:
        source = next((path for path in _copies(settings, problem) if md5_or_tree(path, problem.digest)), None)
        if source is None:
            left.append(problem)
            continue
        store.objects.remove(problem.digest)  # a damaged one must not stay
        store.objects.put(problem.digest, source.read_bytes())
        mended.append(problem)
    for tree in {problem.tree for problem in left}:
        store.objects.remove(tree)
    return mended, left


def md5_or_tree(path: Path, digest: str) -> bool:
    """Whether a file's content is the object of this name."""
    return path.is_file() and md5_of(path) == digest.removesuffix(".dir")


def _copies(settings: Settings, problem: Problem) -> Iterator[Path]:
    yield settings.home / "cache" / place(problem.digest)
    yield settings.home / "shards" / problem.digest[:2] / problem.digest[2:]
    for run in problem.runs:
        for output in (settings.runs / run / "outputs").glob("*"):
            yield output / problem.name


def garbage(settings: Settings, grace_hours: float) -> list[tuple[str, int]]:
    """(digest, bytes) of the objects that nobody needs and that are older than the grace time."""
    store = datasets.store(settings)
    needed = set(cleanup.referred(settings, _runs(settings)))
    for tree, users in _trees(settings).items():
        needed.add(tree)
        if users.versions:
            with contextlib.suppress(StoreError):
                needed.update(datasets.tree(store, tree).values())
    for about in settings.runs.glob("*/work/*/parts/*/about.json"):
        with contextlib.suppress(FileNotFoundError):  # the run goes on meanwhile
            needed.update(put["digest"] for put in json.loads(about.read_text())["stored"])
    return [
        (digest, size)
        for digest, size, age in store.objects.every()
        if digest not in needed and age > 3600 * grace_hours
    ]


def collect(settings: Settings, found: Iterable[tuple[str, int]]) -> None:
    """Removes what `garbage` found."""
    objects = datasets.store(settings).objects
    for digest, _ in found:
        objects.remove(digest)
