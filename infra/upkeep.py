"""Keeping a store trustworthy: is everything there and unharmed, what can be mended, and what does nobody need any more.

What is needed: every tree that a run's `dvc.lock` or lineage names, or that a model version or a record of the promotion
ledger was made from, their leaves, and what running work has written but not sealed yet. DVC's own `gc` knows the commits
of one repository and nothing of the others that share a remote, nor of running work: it must not be used here.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from infra import cleanup, datasets, ledger, registry
from infra.datasets import Store
from infra.objects import md5_of, place
from infra.settings import Settings

_AT_ONCE = 8  # objects that are hashed side by side
_SIGNS = ("body.lock", "progress.json", "metrics.jsonl", "lease.json")  # what work at a stage leaves as it goes on


class UpkeepError(RuntimeError):
    """Data that must not be collected now; the message says why."""

    user_error = True


@dataclass(frozen=True)
class Problem:
    """An object that is not as it should be, and whom that concerns."""

    digest: str
    state: str  # missing | damaged
    tree: str  # the data set that it belongs to; its own digest where that is the tree itself
    name: str  # its path in the data set
    url: str  # the store
    runs: tuple[str, ...]
    versions: tuple[str, ...]  # models:/name/version

    @property
    def is_tree(self) -> bool:
        return self.digest == self.tree

    def row(self) -> dict[str, str]:
        return {
            "object": self.digest[:12],
            "state": self.state,
            "data set": self.tree[:12],
            "file": self.name,
            "runs": ", ".join(self.runs),
            "models": ", ".join(self.versions),
        }


@dataclass
class _Users:
    """Who needs a tree; `expected` in the store, for it stays there or whoever made it has finished."""

    runs: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    expected: bool = False


def verify(settings: Settings, thorough: bool = False) -> list[Problem]:
    """Looks for everything that runs and model versions need; `thorough` reads and hashes each object, too.

    The outputs of a run that has not ended yet are in the cache of its machine only, and are no problem."""
    by_store: dict[str, dict[str, _Users]] = defaultdict(dict)
    for (url, digest), users in sorted(_trees(settings).items()):
        by_store[url][digest] = users
    stores = [(datasets.store(settings, url), needed) for url, needed in by_store.items()]
    return [problem for store, needed in stores for problem in _verify(settings, store, needed, thorough)]


def _verify(settings: Settings, store: Store, needed: Mapping[str, _Users], thorough: bool) -> list[Problem]:
    """The problems of one store."""
    there = {digest: size for digest, size, _ in store.objects.every()}
    trees: list[tuple[str, _Users, dict[str, str], str]] = []
    for digest, users in needed.items():
        entries, state = _entries(settings, store, digest)
        if users.expected or not state or not entries:
            trees.append((digest, users, entries, state))
    damaged: set[str] = set()
    if thorough:
        leaves = {leaf for _, _, entries, _ in trees for leaf in entries.values()} & there.keys()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            hashes = zip(leaves, pool.map(store.objects.hashed, leaves), strict=True)
            damaged = {leaf for leaf, found in hashes if found != leaf}
    problems: list[Problem] = []
    for digest, users, entries, state in trees:
        who = (store.url, tuple(sorted(users.runs)), tuple(sorted(users.versions)))
        if state:
            problems.append(Problem(digest, state, digest, "(the list of its files)", *who))
        for name, leaf in entries.items():
            if leaf not in there or leaf in damaged:
                problems.append(Problem(leaf, "damaged" if leaf in there else "missing", digest, name, *who))
    return problems


def _entries(settings: Settings, store: Store, digest: str) -> tuple[dict[str, str], str]:
    """The files of a tree as the store or this machine's cache lists them, and what is wrong with the store's list."""
    try:
        return datasets.tree(store, digest), ""
    except datasets.Damaged:
        state = "damaged"
    except datasets.StoreError:
        state = "missing"
    with contextlib.suppress(FileNotFoundError):
        return datasets.entries_of(digest, (settings.home / "cache" / place(digest)).read_bytes()) or {}, state
    return {}, state


def _runs(settings: Settings) -> list[Path]:
    return [path for path in sorted(settings.runs.iterdir()) if path.is_dir()] if settings.runs.is_dir() else []


def _trees(settings: Settings) -> dict[tuple[str, str], _Users]:
    """(store, tree) of everything that runs have committed or models were made from, and who needs it."""
    from ruamel.yaml import YAML

    found: dict[tuple[str, str], _Users] = defaultdict(_Users)
    for run in _runs(settings):
        lock, report = run / "dvc.lock", run / "report.html"
        ended = report.is_file() and lock.is_file() and report.stat().st_mtime >= lock.stat().st_mtime
        stages = (YAML(typ="safe").load(lock) or {}).get("stages", {}) if lock.is_file() else {}
        url = datasets.of_run(run, settings).url
        for stage, entry in stages.items():
            for out in entry.get("outs", []):
                if str(out.get("md5", "")).endswith(".dir"):
                    users = found[url, out["md5"]]
                    users.runs.add(run.name)
                    users.expected |= ended or datasets.sealed(run, stage) is not None
    for model in registry.models(settings):
        made = [
            (version.version, version.tags.get("tessera.data", ""), version.tags.get("tessera.run", ""))
            for version in registry.versions(settings, model)
        ]
        made += [(record["to"], record["data"], record["run"]) for record in ledger.history(settings, model)]
        for version, digest, run_name in made:
            if digest.endswith(".dir"):
                users = found[datasets.of_run(settings.runs / run_name, settings).url, digest]
                users.versions.add(f"models:/{model}/{version}")
                users.expected = True
    return found


# --------------------------------------------------------------------------------------------------------- repair


def repair(settings: Settings, problems: Iterable[Problem]) -> tuple[list[Problem], list[Problem]]:
    """(mended, not to be mended). What this machine still has - in DVC's cache, in an output folder, in the cache of
    shards - is put back, leaves before trees."""
    mended: list[Problem] = []
    left: list[Problem] = []
    for problem in sorted(problems, key=lambda problem: problem.is_tree):
        objects = datasets.store(settings, problem.url).objects
        whole = not problem.is_tree or all((other.url, other.tree) != (problem.url, problem.tree) for other in left)
        source = next((path for path in _copies(settings, problem) if _is(path, problem.digest)), None)
        if source is None or not whole:
            left.append(problem)
            continue
        objects.remove(problem.digest)  # a damaged one must not stay
        objects.put_file(problem.digest, source)
        mended.append(problem)
    return mended, left


def forget(settings: Settings, left: Iterable[Problem]) -> None:
    """Removes the tree objects of data sets that stay broken: DVC and the next run take one as proof that all is there, and
    would never put the rest again."""
    for url, tree in {(problem.url, problem.tree) for problem in left}:
        datasets.store(settings, url).objects.remove(tree)


def _is(path: Path, digest: str) -> bool:
    """Whether a file's content is the object of this name."""
    return path.is_file() and md5_of(path) == digest.removesuffix(".dir")


def _copies(settings: Settings, problem: Problem) -> Iterator[Path]:
    """Where this machine may have the object."""
    yield settings.home / "cache" / place(problem.digest)
    yield settings.home / "shards" / problem.digest[:2] / problem.digest[2:]
    if not problem.is_tree:
        for run in problem.runs:
            for output in (settings.runs / run / "outputs").glob("*"):
                yield output / problem.name


# -------------------------------------------------------------------------------------------------------- garbage


def garbage(settings: Settings, grace_hours: float) -> list[tuple[str, int]]:
    """(digest, bytes) of the objects of the project's store that nobody needs and that are older than the grace time.

    While work goes on, nothing is taken that was written since it began. Raises UpkeepError while the files of a data set
    are not known."""
    store, grace = datasets.store(settings), 3600 * grace_hours
    needed = set(cleanup.referred(settings, _runs(settings)))
    for (url, digest), users in _trees(settings).items():
        entries, state = _entries(settings, datasets.store(settings, url), digest)
        if state and not entries and users.expected and url == store.url:
            raise UpkeepError(
                f"{store.url} has lost the list of files of the data set {digest[:12]}, so they cannot be told from garbage; "
                "`tessera data verify` says who needs it, and running that again makes it again"
            )
        needed |= {digest, *entries.values()}
    for about in settings.runs.glob("*/work/*/parts/*/about.json"):
        with contextlib.suppress(FileNotFoundError):  # the run goes on meanwhile
            needed |= {put["digest"] for put in json.loads(about.read_text())["stored"]}
    oldest = max(grace, time.time() - _began(settings, grace))
    return [(digest, size) for digest, size, age in store.objects.every() if digest not in needed and age > oldest]


def _began(settings: Settings, grace: float) -> float:
    """When the oldest work began that gave a sign of life within the grace time; now if there is none."""
    now = time.time()
    began = [now]
    for work in settings.runs.glob("*/work/*"):
        signs = [path.stat().st_mtime for name in _SIGNS if (path := work / name).is_file()]
        if signs and now - max(signs) < grace:
            began.append(min(signs))
    return min(began)


def collect(settings: Settings, found: Iterable[tuple[str, int]], grace_hours: float) -> Mapping[str, int]:
    """Removes what `garbage` found, unless it was put again meanwhile, and what killed writers left half-written; returns
    the removed objects and their bytes."""
    objects = datasets.store(settings).objects
    doomed = dict(found)
    grown_young = {digest for digest, _, age in objects.every() if age <= 3600 * grace_hours} if grace_hours else set()
    removed = {digest: size for digest, size in doomed.items() if digest not in grown_young}
    for digest in removed:
        objects.remove(digest)
    objects.sweep(max(3600 * grace_hours, 3600))
    return removed
