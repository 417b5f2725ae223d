"""The promotion ledger: who made which model version champion, when, why and on what evidence.

Append-only: record n is an object that is created once under its number, so that of two people who promote at the same
time exactly one succeeds - that is the compare-and-set which the registry's aliases lack. Each record holds the hash of
the one before. The aliases are only a view of the last record, and so is the hash of that record, which the registry
keeps as well: a chain alone does not show that its newest links were cut off. `check` holds the two against each other.
"""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, date, datetime
from typing import Any

from infra import registry
from infra.settings import Settings
from infra.storage import open_store

HEAD = "tessera.ledger"  # tag of the registered model: number and hash of the last record


class LedgerError(RuntimeError):
    """A promotion that lost a race, or a ledger that does not hold; the message says what to do."""

    user_error = True


def verify(settings: Settings, model: str) -> tuple[list[dict[str, Any]], str]:
    """Every record, oldest first, and the hash of the last. Raises LedgerError where the chain is broken."""
    store = open_store(settings.ledger)
    records: list[dict[str, Any]] = []
    before = ""
    for name in store.names(f"promotions/{model}"):
        data = store.get(name) or b""
        try:
            record = json.loads(data)
            holds = (record["number"], record["previous"], record["model"]) == (len(records) + 1, before, model)
        except (ValueError, KeyError, TypeError):
            holds = False
        if not holds or name != _name(model, len(records) + 1):
            raise LedgerError(
                f"the ledger of {model} was tampered with at or before {settings.ledger}/{name}: its chain is broken; "
                "restore the ledger from a copy"
            )
        before = hashlib.sha256(data).hexdigest()
        records.append(record)
    return records, before


def history(settings: Settings, model: str, on: date | None = None) -> list[dict[str, Any]]:
    """Every record of a model, or those up to the end of a day (UTC), oldest first."""
    records, _ = verify(settings, model)
    return [r for r in records if on is None or datetime.fromisoformat(r["when"]).astimezone(UTC).date() <= on]


def champion(settings: Settings, model: str, on: date | None = None) -> str | None:
    """The champion's version now, or at the end of a day (UTC)."""
    records = history(settings, model, on)
    return records[-1]["to"] if records else None


def promote(
    settings: Settings,
    model: str,
    version: str,
    *,
    who: str,
    why: str,
    gates: list[dict[str, Any]],
    expected: str | None,
) -> dict[str, Any]:
    """Makes `version` the champion if `expected` still is; then moves the alias. Raises LedgerError if somebody was first."""
    return _append(settings, model, version, expected, {"action": "promote", "who": who, "why": why, "gates": gates})


def rollback(settings: Settings, model: str, *, who: str, why: str) -> dict[str, Any]:
    """Makes the champion before the present one champion again; a second time goes back one further."""
    line = _line(history(settings, model))
    if len(line) < 2:
        raise LedgerError(
            f"{model} has no earlier champion to go back to; `tessera history {model}` shows what there was"
        )
    return _append(settings, model, line[-2], line[-1], {"action": "rollback", "who": who, "why": why, "gates": []})


def _line(records: list[dict[str, Any]]) -> list[str]:
    """The champions that were not taken back, oldest first."""
    line: list[str] = []
    for record in records:
        if record["action"] == "rollback":
            line.pop()
        else:
            line.append(record["to"])
    return line


def _append(settings: Settings, model: str, to: str, expected: str | None, content: dict[str, Any]) -> dict[str, Any]:
    records, previous = _whole(settings, model)
    current = records[-1]["to"] if records else None
    if current != expected:
        raise LedgerError(f"the champion of {model} is version {current} by now, not {expected}; look again and repeat")
    if current == to:
        raise LedgerError(f"version {to} is the champion of {model} already")
    record = {
        "number": len(records) + 1,
        "model": model,
        "from": current,
        "to": to,
        "when": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
        "previous": previous,
        **registry.evidence(settings, model, to),
        **content,
    }
    data = json.dumps(record, indent=1, sort_keys=True).encode()
    if not open_store(settings.ledger).put_if_absent(_name(model, record["number"]), data):
        raise LedgerError(f"somebody else changed the champion of {model} at this moment; look again and repeat")
    rebuild_alias(settings, model)
    return record


def rebuild_alias(settings: Settings, model: str) -> None:
    """Moves the aliases, and the registry's copy of the last hash, to what the ledger says.

    Repeated until the ledger did not grow meanwhile: of two promotions one after the other, the slower first one must not
    put the alias back."""
    shown = -1
    while True:
        records, head = verify(settings, model)
        if len(records) == shown or not records:
            return
        registry.set_alias(settings, model, "champion", records[-1]["to"])
        if records[-1]["from"] is not None:
            registry.set_alias(settings, model, "previous", records[-1]["from"])
        registry.mark(settings, model, HEAD, f"{len(records)} {head}")
        shown = len(records)


def check(settings: Settings, model: str) -> list[str]:
    """What is wrong between ledger and registry; empty when they agree."""
    try:
        records, _ = _whole(settings, model)
    except LedgerError as error:
        return [str(error)]
    now = records[-1]["to"] if records else None
    alias = registry.get_alias(settings, model, "champion")
    return [] if alias == now else [f"{model}: the alias champion is at version {alias}, the ledger says {now}"]


def _whole(settings: Settings, model: str) -> tuple[list[dict[str, Any]], str]:
    """`verify`, and that no record was cut off at the end.

    The registry's copy of the last hash may be older than the ledger (a kill before `rebuild_alias`), never newer; it is
    read first, so that a promotion in between is no contradiction."""
    number, _, known = (registry.marked(settings, model, HEAD) or "0 ").partition(" ")
    records, head = verify(settings, model)
    hashes = ["", *(record["previous"] for record in records[1:]), head] if records else [""]
    if int(number) >= len(hashes) or hashes[int(number)] != known:
        raise LedgerError(
            f"the ledger of {model} was tampered with: the registry knows record {number} as {known[:12]}..., which is "
            "not there; restore the ledger from a copy"
        )
    return records, head


def _name(model: str, number: int) -> str:
    return f"promotions/{model}/{number:06d}.json"
