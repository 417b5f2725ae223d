"""The data set on disk: immutable Parquet shards of encoded samples, the same bytes for the same input.

Splits are decided by a hash of content, so that duplicates never cross: each of `train`, `target`, `held_out` is a folder
of shards that `datasets.load_dataset("parquet")` reads with its Image feature. `dataset.json` says what there is.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from components.data.images import decode
from components.interfaces import Broken, ImageFormat, Sample

SPLITS = ("train", "target", "held_out")
ROWS_PER_SHARD = 10_000
BYTES_PER_SHARD = 256 << 20  # of encoded pictures, so that large photographs do not fill the memory
_FEATURES = {
    "image": {"_type": "Image"},
    **{name: {"dtype": "string", "_type": "Value"} for name in ("label", "caption", "hash", "source", "key")},
}


class DataError(ValueError):
    """Data that cannot be used; the message says what, where and what to do."""

    user_error = True


@dataclass
class Written:
    """What `write` found."""

    rows: dict[str, int]
    broken: list[dict[str, str]]
    duplicates: int
    classes: list[str]


@dataclass(frozen=True)
class Split:
    """One split, decoded. `labels` index the data set's classes; len(classes) where a sample has none."""

    images: np.ndarray  # uint8 [n, C, size, size]
    labels: np.ndarray  # int64 [n]
    hashes: list[str]
    keys: list[str]


@dataclass
class _Rows:
    folder: Path
    shards: int = 0
    total: int = 0
    size: int = 0  # bytes of the waiting pictures
    waiting: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        self.waiting.append(row)
        self.total += 1
        self.size += len(row["image"]["bytes"])
        if len(self.waiting) >= ROWS_PER_SHARD or self.size >= BYTES_PER_SHARD:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        names = [("image", image), *((name, pa.string()) for name in _FEATURES if name != "image")]
        schema = pa.schema(names, metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"shard-{self.shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(self.waiting, schema=schema), path, compression="zstd")
        self.shards += 1
        self.waiting, self.size = [], 0


def fraction(digest: str) -> float:
    """The place of a content hash in [0, 1): what decides its split."""
    return int(digest[:13], 16) / 16**13


def write(
    folder: Path,
    source: Iterable[Sample | Broken],
    target: Iterable[Sample | Broken] | None,
    image: ImageFormat,
    held_out: float,
    max_broken: float,
) -> Written:
    """Writes the shards and `dataset.json` into an empty folder.

    `held_out` is the share that goes to the split of that name: of the target where there is one, else of the source.
    Of exact duplicates the first is kept and the others are counted; the target is read first, so what is in it never is
    in `train` as well. Raises DataError when more than the share `max_broken` is broken, or a split is empty."""
    rows = {name: _Rows(folder / name) for name in SPLITS}
    broken: list[dict[str, str]] = []
    seen: set[str] = set()
    labels: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
    duplicates = 0
    for origin, samples in (("target", target or ()), ("source", source)):
        for sample in samples:
            if isinstance(sample, Broken):
                broken.append({"key": sample.key, "reason": sample.reason})
                continue
            digest = hashlib.sha256(sample.image).hexdigest()
            if digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            split = "train" if origin == "source" else "target"
            if (origin == "target" or target is None) and fraction(digest) < held_out:
                split = "held_out"
            if sample.label is not None:
                labels[split][sample.label] += 1
            rows[split].add(
                {
                    "image": {"bytes": sample.image, "path": sample.key},
                    "label": sample.label,
                    "caption": sample.caption,
                    "hash": digest,
                    "source": origin,
                    "key": sample.key,
                }
            )
    for part in rows.values():
        part.flush()
    counts = {name: part.total for name, part in rows.items() if part.total}
    total = sum(counts.values())
    read = total + duplicates + len(broken)
    if len(broken) > max_broken * read:
        named = "; ".join(f"{b['key']}: {b['reason']}" for b in broken[:5]) + ("; ..." if len(broken) > 5 else "")
        raise DataError(
            f"{len(broken)} of {read} samples are broken, more than dataset.max_broken = {max_broken:g} allows "
            f"({named}); mend or remove them, or raise dataset.max_broken"
        )
    for name in ("train", "held_out") if target is None else SPLITS:
        if name not in counts:
            raise DataError(
                f"the split '{name}' is empty: {total} different samples were read, of which dataset.held_out = {held_out:g} "
                "are held out, chosen by a hash of their content; give more samples, or change dataset.held_out"
            )
    first = set(labels["target"]) | (set() if target is None else set(labels["held_out"]))
    classes = sorted(first) + sorted((set(labels["train"]) | set(labels["held_out"])) - first)
    summary = {
        "image": {"size": image.size, "channels": image.channels},
        "classes": classes,
        "target_classes": sorted(first) if target is not None else classes,
        "splits": {name: {"rows": part.total, "shards": part.shards} for name, part in rows.items() if part.total},
        "broken": broken,
        "duplicates": duplicates,
    }
    (folder / "dataset.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return Written(counts, broken, duplicates, classes)


def describe(folder: Path) -> dict[str, Any]:
    """`dataset.json` of a data set."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(f"{folder} is not a data set: {path.name} is missing")
    return json.loads(path.read_text())


def image_format(folder: Path) -> ImageFormat:
    return ImageFormat(**describe(folder)["image"])


def row_groups(folder: Path, split: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a split as written, a shard at a time."""
    import pyarrow.parquet as pq

    for path in sorted((folder / split).glob("*.parquet")):
        yield pq.read_table(path).to_pylist()


def rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split as written, one after another."""
    for group in row_groups(folder, split):
        yield from group


def load_split(folder: Path, split: str) -> Split:
    """A split decoded into memory; empty when the data set has none of that name."""
    about = describe(folder)
    image = ImageFormat(**about["image"])
    index = {name: i for i, name in enumerate(about["classes"])}
    pictures: list[np.ndarray] = []
    labels, hashes, keys = [], [], []
    with ThreadPoolExecutor() as pool:
        for group in row_groups(folder, split):
            pictures += pool.map(lambda row: decode(row["image"]["bytes"], image), group, chunksize=64)
            labels += [index.get(row["label"], len(index)) for row in group]
            hashes += [row["hash"] for row in group]
            keys += [row["key"] for row in group]
    shape = (0, image.channels, image.size, image.size)
    images = np.stack(pictures) if pictures else np.empty(shape, np.uint8)
    return Split(images, np.array(labels, dtype=np.int64), hashes, keys)
