"""The format of a data set, and reading it: immutable Parquet shards of encoded samples, an index, `dataset.json`.

Each of `train`, `target`, `held_out` is a folder of shards that `datasets.load_dataset("parquet")` reads with its Image and
Audio features; `index/` has one row a sample, without its bytes, with what was measured of it. `components.data.writing`
makes a data set, here it is read, from a folder or from a store (`Files`). docs/decisions/0006 has the layout.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.data.facts import FACTS
from components.data.files import files_of
from components.data.images import decode
from components.interfaces import MODALITIES, Files, ImageFormat, Modality, Sample

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "target", "held_out")
FORMAT = 2  # of dataset.json
_ENCODED = ("image", "audio")  # columns that are struct<bytes, path>
_TEXTS = ("label", "caption", "hash", "source", "key")
_INDEX = {
    "key": "string", "label": "string", "caption_length": "int64", "hash": "string", "source": "string",
    "split": "string", "shard": "string", "row": "int64", "bytes": "int64",
}  # fmt: skip


class DataError(ValueError):
    """Data that cannot be used; the message says what, where and what to do."""

    user_error = True


@dataclass(frozen=True)
class Split:
    """One split, decoded. `labels` index the data set's classes; len(classes) where a sample has none."""

    images: np.ndarray  # uint8 [n, C, size, size]
    labels: np.ndarray  # int64 [n]
    hashes: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Texts:
    """One split of a data set of texts; `labels` as in `Split`."""

    texts: list[str]
    labels: np.ndarray  # int64 [n]
    hashes: list[str]
    keys: list[str]


def content(sample: Sample) -> dict[Modality, bytes]:
    """The bytes of each modality that a sample has."""
    found: dict[Modality, bytes] = {}
    for modality in MODALITIES:
        value = getattr(sample, modality)
        if value is not None:
            found[modality] = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return found


def content_hash(sample: Sample) -> str:
    """SHA-256 of a sample's content: of its bytes where it has one modality, else of the hashes of each by name."""
    values = content(sample)
    if len(values) == 1:
        return hashlib.sha256(next(iter(values.values()))).hexdigest()
    digests = [f"{name}:{hashlib.sha256(data).hexdigest()}" for name, data in values.items()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def fraction(digest: str) -> float:
    """The place of a content hash in [0, 1): what decides its split."""
    return int(digest[:13], 16) / 16**13


def schema(modalities: Sequence[Modality]) -> pa.Schema:
    """The columns of a shard, with the features under which the `datasets` library reads them."""
    import pyarrow as pa

    kinds = {"image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "text": pa.string()}
    kinds |= {"audio": kinds["image"], "array": pa.binary()}
    features: dict[str, dict[str, str]] = {
        "image": {"_type": "Image"},
        "audio": {"_type": "Audio"},
        "text": {"dtype": "string", "_type": "Value"},
        "array": {"dtype": "binary", "_type": "Value"},
    }
    own = {name: features[name] for name in modalities} | dict.fromkeys(_TEXTS, features["text"])
    columns = [(name, kinds.get(name, pa.string())) for name in own]
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": own}})})


def index_schema(modalities: Sequence[Modality], signatures: bool = False) -> pa.Schema:
    """The columns of the index: who a sample is, where it stands, and its facts."""
    import pyarrow as pa

    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}
    columns = [(name, kinds[kind]) for name, kind in _INDEX.items()]
    columns += [(name, kinds[kind]) for modality in modalities for name, kind in FACTS[modality].items()]
    return pa.schema([*columns, *([("signature", pa.binary())] if signatures else [])])


def row_of(sample: Sample, digest: str, origin: str) -> dict[str, Any]:
    """A sample as a row of a shard."""
    row: dict[str, Any] = {name: getattr(sample, name) for name in MODALITIES}
    for name in _ENCODED:
        if row[name] is not None:
            row[name] = {"bytes": row[name], "path": sample.key}
    own = {"label": sample.label, "caption": sample.caption, "hash": digest, "source": origin, "key": sample.key}
    return row | own


def encoded(rows: Sequence[Mapping[str, Any]], columns: pa.Schema) -> bytes:
    """Rows as a Parquet file; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{name: row.get(name) for name in columns.names} for row in rows], schema=columns)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------- reading


def describe(place: Files | Path) -> dict[str, Any]:
    """`dataset.json` of a data set."""
    try:
        return json.loads(files_of(place).path("dataset.json").read_text())
    except FileNotFoundError as error:
        raise DataError(f"{place} is not a data set: dataset.json is missing") from error


def image_format(place: Files | Path) -> ImageFormat:
    about = describe(place)
    if not about["image"]:
        raise DataError(f"{place} holds no pictures, but {', '.join(about['modalities'])}")
    return ImageFormat(**about["image"])


def shard_names(place: Files | Path, split: str) -> list[str]:
    """The shards of a split, in the order of its rows."""
    return [name for name in files_of(place).names() if name.startswith(f"{split}/") and name.endswith(".parquet")]


def index(place: Files | Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The index, one table a part, with these columns only."""
    import pyarrow.parquet as pq

    files = files_of(place)
    for name in files.names():
        if name.startswith("index/") and name.endswith(".parquet"):
            yield pq.read_table(files.path(name), columns=None if columns is None else list(columns))


def row_groups(place: Files | Path, split: str, columns: Sequence[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of a split as written, a shard at a time."""
    import pyarrow.parquet as pq

    files = files_of(place)
    for name in shard_names(files, split):
        yield pq.read_table(files.path(name), columns=None if columns is None else list(columns)).to_pylist()


def rows(place: Files | Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split as written, one after another."""
    for group in row_groups(place, split):
        yield from group


def load_split(place: Files | Path, split: str, most: int | None = None) -> Split:
    """A split of pictures decoded into memory, at `most` its first so many; empty when the data set has none of that name."""
    about = describe(place)
    image = image_format(place)
    pictures: list[np.ndarray] = []
    named: list[dict[str, Any]] = []
    with ThreadPoolExecutor() as pool:
        for group in row_groups(place, split):
            if most is not None:
                group = group[: most - len(pictures)]
            if not group:
                break
            pictures += pool.map(lambda row: decode(row["image"]["bytes"], image), group, chunksize=64)
            named += [{name: row[name] for name in _TEXTS} for row in group]
    shape = (0, image.channels, image.size, image.size)
    images = np.stack(pictures) if pictures else np.empty(shape, np.uint8)
    return Split(images, *_who(named, about["classes"]))


def load_texts(place: Files | Path, split: str) -> Texts:
    """A split of texts in memory; empty when the data set has none of that name."""
    found = [row for group in row_groups(place, split, ["text", *_TEXTS]) for row in group]
    return Texts([row["text"] or "" for row in found], *_who(found, describe(place)["classes"]))


def load_labels(place: Files | Path, split: str) -> np.ndarray:
    """The labels of a split as in `Split`, without the samples; empty when the data set has none of that name."""
    number = {name: i for i, name in enumerate(describe(place)["classes"])}
    found = [number.get(row["label"], len(number)) for group in row_groups(place, split, ["label"]) for row in group]
    return np.array(found, dtype=np.int64)


def _who(found: Iterable[dict[str, Any]], classes: Sequence[str]) -> tuple[np.ndarray, list[str], list[str]]:
    number = {name: i for i, name in enumerate(classes)}
    found = list(found)
    labels = np.array([number.get(row["label"], len(number)) for row in found], dtype=np.int64)
    return labels, [row["hash"] for row in found], [row["key"] for row in found]
