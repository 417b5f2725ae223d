"""`tessera lineage --sample`: which data sets, runs and model versions have seen a sample - for requests to take it down.

1. A sample is a file of the person's, known by the hash of its content whatever it is called, or a key as the source gave
   it; `essay.txt` and `scans` also stand for all that came out of that file or folder (`essay.txt#0`, `scans/7.png`).
2. Looked through are the data sets of all runs, as they are and as they were, and those of model versions and of committed
   stages whose run is gone: of each tree the column of hashes, once however many runs share it.
3. From a data set that holds it, inputs and outputs lead to every stage that used it, and its hash to the model versions.
Samples of several modalities have one hash for all of them: there the facts of the index tell candidates, whose bytes are
compared. Absent on purpose: what only looks the same, such as a picture that was saved again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from components import yamlio
from components.data.files import Folder
from flows import runs
from flows.data_terminal import line
from flows.sample_search import Wanted, places_in
from flows.terminal import console
from infra.settings import Settings
from infra.storage import StorageError

if TYPE_CHECKING:
    from components.interfaces import Files

_DATA = "outputs/dataset"
_NOT_THERE = (StorageError, OSError, ValueError)  # what reading lost or damaged data raises
_SHOWN = 20  # places of a sample in one data set


@dataclass(frozen=True)
class _Work:
    """A stage of a run as it was committed once; `now`: as it is. Of what it read and made: path -> hash."""

    run: Path
    stage: str
    now: bool
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass
class _Tree:
    """A data set, and who refers to it; `now`: the runs whose data set it still is."""

    now: list[Path] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)


def find(settings: Settings, what: str) -> dict[str, Any]:
    """Who has seen the sample `what`, a file or a key:

    {"sample", "hash", "data": [{"tree", "places": [{key, split, source, match}], "runs": [{run, now, stages}], "versions":
    [{model, run, aliases, champion_since}]}], "unreadable": [{tree, reason, runs, versions}]}; `match` is content, key, or
    name where nothing has that content, but files of that name are there. Raises DataViewError."""
    wanted = Wanted.of(what)
    works = list(_works(settings))
    trees = _trees(settings, works)
    unreadable: dict[str, str] = {}

    def search(wanted: Wanted) -> dict[str, list[dict[str, str]]]:
        found = {}
        for tree, users in trees.items():
            try:
                found[tree] = _places(settings, tree, users, wanted)
            except _NOT_THERE as error:  # one that is lost or damaged must not hide the others
                if users.runs or users.versions:  # of what nobody has any more, no record is a promise
                    unreadable[tree] = str(error)
        return {tree: places for tree, places in found.items() if places}

    found = search(wanted)
    if not found and (alike := wanted.by_name()):
        found = search(alike)
    return {
        "sample": what,
        "hash": wanted.digest,
        "data": [
            {"tree": tree, "places": places, "runs": _users(works, tree), "versions": trees[tree].versions}
            for tree, places in found.items()
        ],
        "unreadable": [
            {"tree": tree, "reason": reason, "runs": sorted(trees[tree].runs), "versions": trees[tree].versions}
            for tree, reason in unreadable.items()
        ],
    }


def _works(settings: Settings) -> Iterable[_Work]:
    """Every stage that a run has committed: from its lock those that stand, from its lineage the earlier ones."""
    for run in runs.all_runs(settings.project):
        lock = run / "dvc.lock"
        stages = (yamlio.load(lock) or {}).get("stages", {}) if lock.is_file() else {}
        for stage, entry in stages.items():
            ends = ({i["path"]: i["md5"] for i in entry.get(side, []) if "md5" in i} for side in ("deps", "outs"))
            yield _Work(run, stage, True, *ends)
        for path in sorted((run / "events").glob("*.json")):
            event = json.loads(path.read_text())
            ends = ({i["facets"]["tessera"]["path"]: i["name"] for i in event[side]} for side in ("inputs", "outputs"))
            yield _Work(run, event["job"]["name"], False, *ends)


def _trees(settings: Settings, works: Iterable[_Work]) -> dict[str, _Tree]:
    """Every data set that runs, model versions or records of stages name."""
    found: dict[str, _Tree] = {}
    for work in works:
        if tree := work.outputs.get(_DATA):
            users = found.setdefault(tree, _Tree())
            users.runs.add(work.run.name)
            users.now += [work.run] if work.now else []
    for tree, version in _versions(settings):
        found.setdefault(tree, _Tree()).versions.append(version)
    for tree in _recorded(settings):
        found.setdefault(tree, _Tree())
    return found


def _versions(settings: Settings) -> Iterable[tuple[str, dict[str, Any]]]:
    """(data set, model version) of the registry, with its aliases and since when it is the champion."""
    if not settings.tracking_uri and not (settings.home / "mlflow.db").is_file():
        return  # nothing was ever registered, and asking would make the store
    from infra import ledger, registry

    for model in registry.models(settings):
        held = {alias: registry.get_alias(settings, model, alias) for alias in registry.ALIASES}
        records = ledger.history(settings, model)
        for version in registry.versions(settings, model):
            number = str(version.version)
            if tree := version.tags.get("tessera.data"):
                is_champion = bool(records) and records[-1]["to"] == number
                yield (
                    tree,
                    {
                        "model": f"models:/{model}/{number}",
                        "run": version.tags.get("tessera.run", ""),
                        "aliases": [alias for alias, of in held.items() if of == number],
                        "champion_since": records[-1]["when"] if is_champion else None,
                    },
                )


def _recorded(settings: Settings) -> Iterable[str]:
    """Data sets that a stage was committed with, by whichever run; read from the records of what dataset stages cost,
    which are few."""
    from infra.storage import open_store

    store = open_store(settings.ledger)
    for name in store.names("system-costs"):
        if "/dataset/" in name and (data := store.get(name)):
            outs = json.loads(data)["outs"]
            yield from (digest for path, digest in outs.items() if path == _DATA)


def _places(settings: Settings, tree: str, users: _Tree, wanted: Wanted) -> list[dict[str, str]]:
    """Where a sample is in a data set, read from the folder of a run, else from the store, else from this machine's cache.
    Raises the error of the first of them (`_NOT_THERE`)."""
    from infra import datasets

    folders = (run / "outputs" / "dataset" for run in users.now)
    stores = [datasets.of_run(run, settings) for run in users.now] + [datasets.store(settings)]
    stores.append(datasets.store(settings, str(settings.home / "cache")))  # DVC's cache has the layout of a store
    ways: list[Callable[[], Files]] = [partial(datasets.open_tree, store, tree) for store in dict.fromkeys(stores)]
    if here := next((folder for folder in folders if folder.is_dir()), None):
        ways.insert(0, partial(Folder, here))
    errors: list[Exception] = []
    for open_ in ways:
        try:
            return places_in(open_(), wanted)
        except _NOT_THERE as error:
            errors.append(error)
    raise errors[0]


def _users(works: Iterable[_Work], tree: str) -> list[dict[str, Any]]:
    """Each run that made a data set or used it, with the stages that did, however far down."""
    of_run: dict[Path, list[_Work]] = {}
    for work in works:
        of_run.setdefault(work.run, []).append(work)
    return [
        {
            "run": run.name,
            "now": any(work.now and work.outputs.get(_DATA) == tree for work in done),
            "stages": _ordered(run, _stages(done, tree)),
        }
        for run, done in of_run.items()
        if any(tree in (*work.inputs.values(), *work.outputs.values()) for work in done)
    ]


def _stages(works: Iterable[_Work], tree: str) -> set[str]:
    """The stages of a run that read a data set or what was made from it. One that read another data set is none of them,
    whatever else it read: two mixtures may have the same weights."""
    reached, stages, count = {tree}, set[str](), 0
    works = [work for work in works if work.inputs.get(_DATA, tree) == tree]
    while len(reached) != count:
        count = len(reached)
        for work in works:
            if not reached.isdisjoint(work.inputs.values()):
                stages.add(work.stage)
                reached |= set(work.outputs.values())
    return stages


def _ordered(run: Path, stages: Iterable[str]) -> list[str]:
    """Stages in the order of the run's graph."""
    order = runs.stage_list(run)
    return sorted(stages, key=lambda stage: order.index(stage) if stage in order else len(order))


# ----------------------------------------------------------------------------------------------------------- shown


def seen(settings: Settings, what: str, as_json: bool) -> None:
    """Prints who has seen a sample. Raises DataViewError."""
    found = find(settings, what)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if found["hash"]:
        console.print(f"{escape(what)}  sha256 {found['hash']}", soft_wrap=True)
    by_name = any(place["match"] == "name" for data in found["data"] for place in data["places"])
    if not found["data"] or by_name:
        sought = "with this content" if found["hash"] else f"with the key {what}, and here is no file of that name"
        console.print(f"no data set of this project holds a sample {escape(sought)}", soft_wrap=True)
    if by_name:
        console.print("samples with other content came from files of this name (or are pieces of it):")
    for data in found["data"]:
        console.print(f"\n[bold]data set {data['tree'][:12]}[/]")
        for place in data["places"][:_SHOWN]:
            console.print(
                escape(f"  {line(place['key'])}  in {place['split']}, from the {place['source']}"), soft_wrap=True
            )
        if len(data["places"]) > _SHOWN:
            console.print(f"  and {len(data['places']) - _SHOWN:,} more")
        for run in data["runs"]:
            used = ", ".join(run["stages"]) or "nothing used it"
            console.print(f"  run {run['run']}{'' if run['now'] else ' (earlier)'}: {used}", soft_wrap=True)
        for version in data["versions"]:
            console.print(f"  {_version(version)}", soft_wrap=True)
    for data in found["unreadable"]:
        users = ", ".join([*data["runs"], *(version["model"] for version in data["versions"])])
        console.print(
            f"\n[yellow]could not be looked through[/]: data set {data['tree'][:12]} of {users}: {escape(data['reason'])}",
            soft_wrap=True,
        )


def _version(version: Mapping[str, Any]) -> str:
    since = f" since {version['champion_since'][:10]}" if version["champion_since"] else ""
    aliases = ", ".join(f"[bold]{alias}[/]" + (since if alias == "champion" else "") for alias in version["aliases"])
    return f"{version['model']} of run {version['run']}" + (f"  {aliases}" if aliases else "")
