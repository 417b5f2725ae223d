"""DVC's run cache, read and written with care: which outputs a command made from which inputs and sections, for all runs.

DVC addresses an entry by a hash of command, inputs and sections that leaves out every key named `size` or `nfiles`, at any
depth: it would give the data of `image: {size: 16}` to a recipe that says 32. So entries are compared here in full. And
DVC writes a new entry beside the finished ones, where another run that looks at that moment takes it for a damaged one and
deletes it. So entries are written elsewhere and moved. They stay in DVC's format and place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.storage import write_bytes_atomic, yaml_bytes


def restore(repo: Any, stage: Any, save_deps: Callable[[], None], fetch: Callable[[Any], bool]) -> bool:
    """Puts the newest outputs in place that are complete; False if there are none. `save_deps` hashes the inputs, `fetch`
    takes an output from the store that the cache has not.

    What lies there and was altered gives way, as it would to the body."""
    save_deps()
    for entry in _entries(repo, stage):
        made = repo.stage_cache._create_stage(entry, wdir=stage.wdir)
        absent = [out for out in made.outs if out.changed_cache()]
        if all(fetch(out) for out in absent):
            for out in made.outs:
                if out not in absent:
                    out.checkout(force=True)
            return True
    return False


def remember(repo: Any, stage: Any) -> None:
    """Adds a stage whose outputs are in the cache."""
    address = _address(stage)
    if address is None:
        return
    entry = _as_entry(stage)
    name = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    path = Path(repo.stage_cache._get_cache_path(address, name))
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(repo.stage_cache.cache_dir).parent / f".entry-{os.getpid()}-{name[:16]}"
        write_bytes_atomic(fresh, yaml_bytes(entry))
        os.replace(fresh, path)


def _entries(repo: Any, stage: Any) -> list[dict[str, Any]]:
    """What is there for exactly this command, these inputs and sections; the newest first."""
    address = _address(stage)
    if address is None:
        return []
    cache = repo.stage_cache
    folder = Path(cache._get_cache_dir(address))
    # `_load_cache` deletes what it cannot read: never show it a file that `dvc repro` is still writing
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    paths.sort(key=lambda path: -path.stat().st_mtime_ns)
    found = [entry for path in paths if (entry := cache._load_cache(address, path.name))]
    wanted = _identity(_as_entry(stage))
    return [entry for entry in found if _identity(entry) == wanted]


def _address(stage: Any) -> str | None:
    """Where DVC keeps the entries of a stage; None for one that it cannot cache (no input, or one without a hash).

    The inputs' hashes are those that were just saved: DVC's own function would take them again, and cannot where an input
    is in the store only."""
    from dvc.stage.cache import _get_cache_hash

    if not (stage.cmd and stage.deps and stage.outs) or not all(dep.hash_info for dep in stage.deps):
        return None
    return _get_cache_hash(_as_entry(stage), key=True)


def _as_entry(stage: Any) -> dict[str, Any]:
    from dvc.stage.serialize import to_single_stage_lockfile

    return json.loads(json.dumps(to_single_stage_lockfile(stage)))


def _identity(entry: dict[str, Any]) -> str:
    """Everything of an entry that decides what comes out."""
    deps = sorted((dep["path"], dep.get("md5")) for dep in entry.get("deps", []))
    outs = sorted(out["path"] for out in entry["outs"])
    return json.dumps([entry["cmd"], deps, entry.get("params", {}), outs], sort_keys=True)
