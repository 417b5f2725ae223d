"""Folders of encoded files, one a sample: what `image_folder` and `audio_folder` have in common.

Mechanism: 1. a `metadata.csv` or `metadata.jsonl` in a folder (Hugging Face's form: `file_name`, and `label` and `text` or
`caption`) says what the files below it are; 2. where no table is, the first subfolder is the label, and `x.txt` beside
`x.jpg` its caption; 3. each file is decoded once to know that it can be, and yielded as its bytes came; 4. what cannot be
is yielded as `Broken` with the reason. Files go into parts together with the tables above them and the captions beside
them, so that a part is read without a listing.
Absent on purpose: resizing, re-encoding, labels out of file names.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, ClassVar

from components.data.locations import Entry, SourceError, listing, read_bytes, read_each, stat, why
from components.data.sources import _parts
from components.data.sources._checked import checked, plain
from components.data.sources._text import NotText, to_text
from components.interfaces import Broken, Modality, Part, Sample, Source

_TABLES = ("metadata.csv", "metadata.jsonl")
Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # file -> its row, and further ones that repeat its name


class FolderSource(Source):
    """A folder of files of one modality; `path` is its name (relative to the working directory or absolute) or a URL."""

    modality: ClassVar[Modality]
    expected: ClassVar[str]  # kinds of files, for messages

    def __init__(self, *, path: str) -> None:
        self.path = path

    def parts(self) -> Sequence[Part]:
        found = {entry.name: entry for entry in listing(self.path, self.expected)}
        if "" in found:
            raise SourceError(f"'{self.path}' is a file; give the folder that it is in")
        tables = [name for name in found if _base(name) in _TABLES]
        captions = _captions([name for name in found if name not in tables])
        beside = set(captions.values())
        names = {name for name in found if name not in tables and name not in beside}
        if not names:
            raise SourceError(f"'{self.path}' holds no files; expected {self.expected}")
        for table in tables:
            names |= set(_read_table(self.path, table, found[table]))
        parts = _parts.divide(_units(sorted(names), found, captions))
        return [Part((*_above(part.files, tables), *part.files)) for part in parts]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        tables = {
            name: _read_table(self.path, name, stat(self.path, name)) for name in part.files if _base(name) in _TABLES
        }
        names = [name for name in part.files if name not in tables]
        captions = _captions(names)
        beside = sorted(set(captions.values()))
        texts = dict(zip(beside, read_each(self.path, beside), strict=True))
        names = [name for name in names if name not in texts]
        for name, data in zip(names, read_each(self.path, names), strict=True):
            over = [rows for table, rows in tables.items() if name.startswith(_folder(table))]
            rows = next((rows[name] for rows in over if name in rows), [{}] if over else [])
            key = _parts.key_of(self.path, name)
            yield self._sample(key, data, rows, texts.get(captions.get(name, "")))
            for number, _ in enumerate(rows[1:], 2):
                yield Broken(f"{key}#{number}", "the metadata names this file again; only the first row counts")

    def _sample(
        self, key: str, data: bytes | OSError, rows: Sequence[Mapping[str, Any]], text: bytes | OSError | None
    ) -> Sample | Broken:
        """`rows` is empty where there is no table, `text` the file beside this one where there is one."""
        if isinstance(data, FileNotFoundError) and any(rows):
            return Broken(key, "named in the metadata, but there is no such file")
        if isinstance(data, OSError):
            return Broken(key, why(data))
        label: str | None = key.split("/")[0] if "/" in key else None
        caption = None
        if rows:
            label, caption = plain(rows[0].get("label")), plain(rows[0].get("text", rows[0].get("caption")))
        elif isinstance(text, OSError):
            return Broken(key, f"its caption {why(text)}")
        elif text:  # an empty one says nothing, like an empty cell of a table
            try:
                caption = plain(to_text(text).strip())
            except NotText as error:
                return Broken(key, f"its caption: {error}")
        content: dict[str, Any] = {self.modality: data}
        return checked(Sample(key, label=label, caption=caption, **content))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _folder(name: str) -> str:
    """With '/' at its end; "" for the uppermost."""
    return name[: name.rfind("/") + 1]


def _above(files: Sequence[str], tables: Sequence[str]) -> list[str]:
    """The tables that say something of these files."""
    return [table for table in tables if any(name.startswith(_folder(table)) for name in files)]


def _captions(names: Sequence[str]) -> dict[str, str]:
    """file -> the text file of the same name beside it."""
    texts = {name[: -len(".txt")]: name for name in names if name.lower().endswith(".txt")}
    stems = ((name, name[: len(name) - len(PurePosixPath(name).suffix)]) for name in names)
    return {name: texts[stem] for name, stem in stems if stem in texts and texts[stem] != name}


def _units(
    names: Sequence[str], found: Mapping[str, Entry], captions: Mapping[str, str]
) -> Iterator[tuple[list[str], int]]:
    for name in names:
        files = [name, *([captions[name]] if name in captions else [])]
        yield files, sum(found[file].size for file in files if file in found)


def _read_table(path: str, name: str, entry: Entry) -> Rows:
    return _table(path, name, entry.mark)


@lru_cache(maxsize=4)
def _table(path: str, name: str, mark: str) -> Rows:
    """file -> its row; refuses names that leave the folder. `mark` tells a table from what it was before."""
    try:
        lines = io.StringIO(to_text(read_bytes(path, name) or b"\n"), newline="")
        table: Any = csv.DictReader(lines) if name.endswith(".csv") else map(json.loads, filter(str.strip, lines))
        rows = list(table)
    except (csv.Error, json.JSONDecodeError, NotText, OSError) as error:
        raise SourceError(f"{path}/{name}: {error}") from error
    named: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        if (
            not isinstance(row, dict)
            or not isinstance(row.get("file_name"), str)
            or not PurePosixPath(row["file_name"]).name
        ):
            columns = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
            raise SourceError(f"{path}/{name}: row {number}: expected a 'file_name', found {columns}")
        file = row["file_name"]
        if file.startswith("/") or ".." in PurePosixPath(file).parts:
            raise SourceError(f"{path}/{name}: row {number}: the metadata names '{file}', which is outside the folder")
        named.setdefault(_folder(name) + PurePosixPath(file).as_posix(), []).append(row)
    return named
