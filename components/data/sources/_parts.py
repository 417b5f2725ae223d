"""How sources that read files divide themselves: by number and size of the files, never by who reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from components.data.locations import Entry, SourceError
from components.interfaces import Part

FILES = 1000  # of a part
BYTES = 64 << 20  # of a part


def divide(units: Iterable[tuple[Sequence[str], int]]) -> list[Part]:
    """Neighbours into parts of at most about 1,000 files and 64 MB. A unit is what must not be torn apart: names of files
    and the bytes of all; one that is larger than a part is a part of its own."""
    parts: list[Part] = []
    names: list[str] = []
    total = 0
    for files, size in units:
        if names and (len(names) + len(files) > FILES or total + size > BYTES):
            parts.append(Part(tuple(names)))
            names, total = [], 0
        names += files
        total += size
    return [*parts, Part(tuple(names))] if names else parts


def ranges(name: str, total: int, step: int) -> list[Part]:
    """One large file in pieces of `step` (bytes, rows) out of `total`."""
    return [Part((name,), start, min(start + step, total)) for start in range(0, total, step)]


def of_kind(path: str, found: Sequence[Entry], endings: Sequence[str], expected: str) -> list[Entry]:
    """Those of a listing whose names end so; one file that is named directly is taken whatever it is called. Raises
    SourceError where there are none."""
    chosen = [entry for entry in found if not entry.name or entry.name.lower().endswith(tuple(endings))]
    if not chosen:
        some = ", ".join(f"'{entry.name}'" for entry in found[:3])
        raise SourceError(f"'{path}' holds no {expected} ({', '.join(endings)}); found {some}")
    return chosen


def key_of(path: str, name: str) -> str:
    """The key of a file: its name below the folder, or its own name where the path is a file. Bytes that are not UTF-8
    are written as `\\xff`, for keys are stored as text."""
    key = name or path.rstrip("/").rpartition("/")[2]
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
