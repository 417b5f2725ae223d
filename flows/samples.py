"""`tessera lineage --sample`: which data sets, runs and model versions have seen a sample - for requests to take it down.

A sample is a file of the person's, known by the hash of its content whatever it is called, or a key as the source gave it.
Of each data set only two columns of the index are read, once however many runs share it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from components import yamlio
from flows import outputs, runs
from flows.terminal import console
from infra.settings import Settings
from infra.storage import StorageError

_READS = ("mixture", "networks", "tokenizer", "tokens", "generator", "posttraining", "evaluation", "registration")


def find(settings: Settings, what: str) -> dict[str, Any]:
    """{"hash", "data": [{"tree", "places": [{key, split, source}], "runs": {run: stages}, "versions": [...]}], "unreadable"}.

    `what` is a file, or a sample's key."""
    path = Path(what)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    sharing: dict[str, list[Path]] = defaultdict(list)
    for run in runs.all_runs(settings.project):
        if tree := _tree(run):
            sharing[tree].append(run)
    found: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for tree, users in sharing.items():
        try:
            places = _places(users, digest, what)
        except (StorageError, outputs.OutputError):
            unreadable += [run.name for run in users]
            continue
        if places:
            names = {
                run.name: [s for s in runs.stage_list(run) if s in _READS and runs.metrics(run, s)] for run in users
            }
            found.append({"tree": tree, "places": places, "runs": names, "versions": _versions(settings, tree, names)})
    return {"hash": digest, "data": found, "unreadable": unreadable}


def _tree(run: Path) -> str | None:
    """The content hash of a run's data set."""
    lock = run / "dvc.lock"
    stages = (yamlio.load(lock) or {}).get("stages", {}) if lock.is_file() else {}
    outs = stages.get("dataset", {}).get("outs", [])
    return next((out["md5"] for out in outs if out["path"] == "outputs/dataset"), None)


def _places(users: list[Path], digest: str | None, key: str) -> list[dict[str, str]]:
    """Where the sample is in the data set that these runs share."""
    import pyarrow.compute as pc

    from components.data import shards

    here = next((run for run in users if (run / "outputs" / "dataset").is_dir()), users[0])
    files = outputs.files(here, "dataset")
    column, wanted = ("key", key) if digest is None else ("hash", digest)
    places: list[dict[str, str]] = []
    for part in shards.index(files, ["key", "hash", "split", "source"]):
        places += part.filter(pc.equal(part.column(column), wanted)).to_pylist()
    return places


def _versions(settings: Settings, tree: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """The model versions that were made from a data set, and what each is now."""
    from infra import registry

    made = []
    for model in registry.models(settings):
        held = {registry.get_alias(settings, model, alias): alias for alias in ("previous", "champion")}
        for version in registry.versions(settings, model):
            if version.tags.get("tessera.data") == tree or version.tags.get("tessera.run") in names:
                number = str(version.version)
                made.append({"model": f"models:/{model}/{number}", "alias": held.get(number)})
    return made


def seen(settings: Settings, what: str, as_json: bool) -> None:
    """Prints who has seen a sample."""
    found = find(settings, what)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if not found["data"]:
        console.print(f"no data set of this project holds {escape(what)}")
    for data in found["data"]:
        console.print(f"data set {data['tree'][:12]}")
        for place in data["places"]:
            console.print(f"  {escape(place['key'])}  in {place['split']}, from the {place['source']}")
        for run, stages in data["runs"].items():
            console.print(f"  run {run}: {', '.join(stages) or 'nothing read it yet'}")
        for version in data["versions"]:
            console.print(f"  {version['model']}" + (f"  [bold]{version['alias']}[/]" if version["alias"] else ""))
    if found["unreadable"]:
        console.print(f"could not be looked through: the data of {', '.join(found['unreadable'])}")
