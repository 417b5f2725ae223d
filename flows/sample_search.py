"""Where a sample is in one data set: by the hash of its content, by its key, or by the name of its file.

Read is the index, one column of it where nothing is found. In a data set of several modalities a hash stands for all of
them together; there the sizes and facts of the index name candidates, and only those are read and compared byte by byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.data_index import DataViewError

if TYPE_CHECKING:
    import pyarrow as pa

    from components.interfaces import Files, Modality

_PLACE = ("key", "split", "source")
_NEAR = 0.01  # relative: facts are measured again, perhaps with another version of a decoder


@dataclass(frozen=True)
class Wanted:
    """A sample to look for. `match`: content | key | name."""

    what: str
    match: str
    digest: str | None = None  # of the file as it is
    data: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, what: str) -> Wanted:
        """A file's content where there is such a file, else a key. Raises DataViewError."""
        path = Path(what)
        if path.is_dir():
            raise DataViewError(f"{what} is a folder; give one file, or the key of a sample")
        if not path.is_file():
            return cls(what, "key")
        data = path.read_bytes()
        return cls(what, "content", hashlib.sha256(data).hexdigest(), data)

    def by_name(self) -> Wanted | None:
        """The same file by its name; None where it is a key that is looked for."""
        return Wanted(Path(self.what).name, "name") if self.match == "content" else None

    def contents(self) -> list[bytes]:
        """The file's content, and for a text without what editors add: a mark at its beginning, a line end at its end."""
        found = [self.data]
        if _text(self.data) is not None:
            plain = self.data.removeprefix(b"\xef\xbb\xbf")
            found += [plain, plain.removesuffix(b"\n").removesuffix(b"\r")]
        return list(dict.fromkeys(found))


def places_in(files: Files, wanted: Wanted) -> list[dict[str, str]]:
    """{key, split, source, match} of each sample of a data set that is the wanted one. Raises FileNotFoundError where the
    data set has no index."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from components.data import shards

    names = [name for name in files.names() if name.startswith("index/") and name.endswith(".parquet")]
    if not names:
        raise FileNotFoundError("it has no index: an earlier version made it; `tessera run` makes it again")
    if wanted.match == "content":
        hashes = pa.array([hashlib.sha256(data).hexdigest() for data in wanted.contents()])
        found = _rows(files, names, "hash", lambda column: pc.is_in(column, hashes))
        about = shards.describe(files)
        if len(about["modalities"]) > 1:
            known = {place["key"] for place in found}
            found += [place for place in _within(files, about["modalities"], wanted) if place["key"] not in known]
    else:
        pattern = ("^" if wanted.match == "key" else "(^|/)") + re.escape(wanted.what) + "([#/].*)?$"
        found = _rows(files, names, "key", lambda column: pc.match_substring_regex(column, pattern))
    return [{**place, "match": wanted.match} for place in found]


def _rows(files: Files, names: list[str], column: str, test: Any) -> list[dict[str, str]]:
    """Key, split and source of the rows of the index whose column passes a test."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: list[dict[str, str]] = []
    for name in names:
        path = files.path(name)
        mask = test(pq.read_table(path, columns=[column]).column(column))
        if pc.any(mask).as_py():
            found += pq.read_table(path, columns=list(_PLACE)).filter(mask).to_pylist()
    return found


def _within(files: Files, modalities: list[Modality], wanted: Wanted) -> Iterator[dict[str, str]]:
    """The samples of which the wanted content is one of several modalities."""
    import pyarrow.parquet as pq

    for content in wanted.contents():
        for modality in modalities:
            facts = _facts(modality, content)
            for part in _candidates(files, facts, len(content)) if facts else ():
                for shard in part.column("shard").unique().to_pylist():
                    rows = [row for row in part.to_pylist() if row["shard"] == shard]
                    values = pq.read_table(files.path(shard), columns=[modality]).column(modality)
                    for row in rows:
                        if _bytes(values[row["row"]].as_py()) == content:
                            yield {name: row[name] for name in _PLACE}


def _facts(modality: Modality, content: bytes) -> dict[str, float]:
    """What would be measured of a content of this modality; nothing where it cannot be one."""
    from components.data.facts import measure
    from components.interfaces import Sample

    if modality == "text":
        text = _text(content)
        found = {} if text is None else measure(Sample("", text=text))
    else:
        found = measure(Sample("", **{modality: content}))  # type: ignore[arg-type]
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _candidates(files: Files, facts: dict[str, float], least: int) -> Iterator[pa.Table]:
    """Rows of the index with these facts and at least so many bytes."""
    import pyarrow.compute as pc

    from components.data import shards

    for part in shards.index(files, [*_PLACE, "shard", "row", "bytes", *facts]):
        mask = pc.greater_equal(part.column("bytes"), least)
        for name, value in facts.items():
            apart = pc.abs(pc.subtract(part.column(name), value))
            mask = pc.and_(mask, pc.less_equal(apart, _NEAR * max(1.0, abs(value))))
        yield part.filter(mask)


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _bytes(value: Any) -> bytes | None:
    """The content of a cell of a shard."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return value["bytes"] if isinstance(value, dict) else value
