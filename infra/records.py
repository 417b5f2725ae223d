"""One record a stage key: what came out, where, when and how long it took. Created once, never changed.

The record is the commit as other runs see it; `dvc.lock`, the MLflow run and the lineage event are made from it."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from infra.settings import Settings
from infra.storage import open_store


def find(settings: Settings, key: str) -> dict[str, Any] | None:
    """The record of a stage key, None if no run has made it."""
    data = open_store(settings.ledger).get(_name(key))
    return json.loads(data) if data else None


def put(settings: Settings, key: str, **content: Any) -> dict[str, Any]:
    """Creates the record of a key; if there is one already, that one stays and is returned.

    `content` has at least stage, run, system, outs, metrics, seconds (None: unknown) and started (a Unix time)."""
    store = open_store(settings.ledger)
    record = {"key": key, "host": socket.gethostname(), "finished": time.time(), **content}
    data = json.dumps(record, sort_keys=True).encode()
    # The newest cost of a stage, found without reading all records. Before the record, which is the commit: a kill in
    # between leaves a cost too many, never a record without its cost.
    name = f"{content['stage']}/{content['started']:.0f}-{key[:8]}.json"
    if find(settings, key) is None and content["seconds"] is not None:
        for folder in _cost_folders(content["run"], content["system"]):
            store.put_if_absent(f"{folder}/{name}", data)
    if store.put_if_absent(_name(key), data):
        return record
    return find(settings, key) or record


def last_cost(settings: Settings, stage: str, run: str, system: str | None = None) -> float | None:
    """Seconds the body of a stage took when it last ran: in this run, else in any run of the system."""
    store = open_store(settings.ledger)
    for folder in _cost_folders(run, system):
        names = store.names(f"{folder}/{stage}")
        if names and (data := store.get(names[-1])):
            return float(json.loads(data)["seconds"])
    return None


def _cost_folders(run: str, system: str | None) -> list[str]:
    return [f"costs/{run}", *([f"system-costs/{system}"] if system else [])]


def _name(key: str) -> str:
    return f"records/{key[:2]}/{key}.json"
