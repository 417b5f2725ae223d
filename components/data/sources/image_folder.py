"""Any folder of pictures: mixed sizes and formats, class subfolders or a table of labels and captions beside them.

Mechanism: 1. every file below the folder in a fixed order, hidden ones left out; 2. a `metadata.csv` or `metadata.jsonl`
(Hugging Face's form: `file_name`, and `label` and `text` or `caption`) says what they are, otherwise the first subfolder
is the label; 3. each file is decoded once to know that it can be; 4. what cannot is yielded as `Broken` with the reason.
Absent on purpose: resizing, re-encoding, sniffing of labels from file names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.data.images import check
from components.interfaces import Broken, Part, Sample, Source

_TABLES = ("metadata.csv", "metadata.jsonl")


class FolderError(ValueError):
    """A folder that is not there, is empty, or has a table that cannot be read."""

    user_error = True


class ImageFolder(Source):
    """Pictures of a folder; `path` is a folder's name, relative to the working directory or absolute."""

    def __init__(self, *, path: str) -> None:
        self.path = path

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise FolderError(f"'{self.path}' is not a folder; give the folder that holds your pictures with --data")
        files = sorted(p for p in root.rglob("*") if p.is_file() and not _hidden(p.relative_to(root)))
        pictures = [p for p in files if p.name not in _TABLES]
        if not pictures:
            raise FolderError(f"'{self.path}' holds no files; expected pictures (PNG, JPEG, WebP, BMP, GIF, TIFF)")
        table = _read_table(root)
        for missing in sorted(set(table) - {p.relative_to(root).as_posix() for p in pictures}):
            yield Broken(missing, "named in the metadata, but there is no such file")
        for path in pictures:
            key = path.relative_to(root).as_posix()
            data = path.read_bytes()
            reason = check(data)
            if reason:
                yield Broken(key, reason)
                continue
            row = table.get(key, {})
            label = row.get("label") if table else (key.split("/")[0] if "/" in key else None)
            yield Sample(key, data, label=_text(label), caption=_text(row.get("text", row.get("caption"))))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _text(value: Any) -> str | None:
    """A cell of the table; an empty one says nothing."""
    return None if value is None or value == "" else str(value)


def _read_table(root: Path) -> dict[str, dict[str, Any]]:
    """file name -> its row; refuses names that leave the folder."""
    rows: list[dict[str, Any]] = []
    for name in _TABLES:
        path = root / name
        if not path.is_file():
            continue
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                table = csv.DictReader(file) if name.endswith(".csv") else map(json.loads, filter(str.strip, file))
                rows = list(table)
        except (csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise FolderError(f"{path}: {error}") from error
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                found = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
                raise FolderError(f"{path}: row {number}: expected a 'file_name', found {found}")
    named = {}
    for row in rows:
        name = row["file_name"]
        if name.startswith("/") or ".." in Path(name).parts:
            raise FolderError(f"{root}: the metadata names '{name}', which is outside the folder")
        named[Path(name).as_posix()] = row
    return named
