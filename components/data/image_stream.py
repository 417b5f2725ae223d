"""Pictures as a stream: rows of a data set's Parquet shards, kept as encoded bytes and decoded batch by batch.

1. The index tells, without a shard being opened, how many rows and bytes each has; windows are bounded in bytes.
2. `read` slices the encoded bytes of some pictures out of the shards of the windows in use; `make` decodes them.
3. With `rows` it is a stream over some rows only (a cluster of a mixture); of a loaded shard only these are kept.
Absent on purpose: a thread pool for decoding. Small pictures hold Python's lock so much of the time that a second thread
gains nothing, with large ones it does (`python -m benchmarks.data_reading` shows both); `prefetch.Prefetch` decodes in
other processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from components.data import shards
from components.data.images import decode
from components.data.order import Shuffle
from components.data.shards import DataError
from components.data.stream import Stream
from components.data.windows import Windows
from components.interfaces import Files, ImageFormat

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Encoded:
    """Pictures as they are stored, and their labels [n]. `start` is the position of the first in the stream."""

    start: int
    pictures: list[bytes]
    labels: np.ndarray


class ImageStream(Stream[Encoded]):
    """{"images": uint8 [n, C, size, size], "labels": int64 [n]} of a split of a data set; `StreamBatches` makes them float.

    `about` is its `dataset.json`. `window`: encoded bytes that are shuffled together; up to `windows.KEPT` times as much is
    in memory. `rows`: shard name -> numbers of the rows to read, for a stream over some of them only; of shards that are
    not named none is read. A label is its place among the classes, their number where a sample has none. Raises DataError
    for data without pictures, ValueError for a split without rows, and DataError, when a sample is made, for a picture
    that cannot be decoded."""

    def __init__(
        self,
        files: Files,
        about: Mapping[str, Any],
        split: str = "train",
        *,
        seed: int,
        window: int = 512 << 20,
        rows: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if not about["image"]:
            raise DataError(f"expected a data set of pictures, got one of {', '.join(about['modalities'])}")
        self.image = ImageFormat(**about["image"])
        self.names = [name for name in shards.shard_names(files, split) if rows is None or name in rows]
        chosen = None if rows is None else [np.asarray(rows[name], dtype=np.int64) for name in self.names]
        sizes = _sizes(files, split, rows)
        counts = [sizes[name][0] for name in self.names]
        self.order = Shuffle(counts, seed, window=window, sizes=[sizes[name][1] for name in self.names])
        self.length = self.order.length
        self.chosen = chosen
        self.windows = Windows(self.order, _Load(files, self.names, list(about["classes"]), chosen))

    def read(self, start: int, stop: int) -> Encoded:
        pictures: list[bytes] = []
        labels = []
        for run in self.order.where(start, stop):
            loaded = self.windows.of(run.epoch, run.window)
            places = list(zip(run.shards.tolist(), run.rows.tolist(), strict=True))
            pictures += [loaded[shard].pictures[row].as_py() or b"" for shard, row in places]
            labels += [loaded[shard].labels[row] for shard, row in places]
        return Encoded(start, pictures, np.array(labels, dtype=np.int64))

    def make(self, stored: Encoded) -> dict[str, Tensor]:
        size = self.image.size
        pixels = np.empty((len(stored.pictures), self.image.channels, size, size), np.uint8)
        for i, data in enumerate(stored.pictures):
            try:
                pixels[i] = decode(data, self.image)
            except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
                raise DataError(f"{self.name(stored.start + i)} cannot be decoded: {error}") from error
        return {"images": torch.from_numpy(pixels), "labels": torch.from_numpy(stored.labels)}

    def name(self, position: int) -> str:
        """Which sample this is, for a message."""
        run = self.order.where(position, position + 1)[0]
        shard, row = int(run.shards[0]), int(run.rows[0])
        return f"row {row if self.chosen is None else self.chosen[shard][row]} of {self.names[shard]}"


def rows_of(files: Files, split: str) -> dict[str, int]:
    """Shard -> the number of its rows, in their order."""
    sizes = _sizes(files, split, None)
    return {name: sizes[name][0] for name in shards.shard_names(files, split)}


@dataclass(frozen=True)
class _Shard:
    pictures: pa.ChunkedArray  # of binary
    labels: np.ndarray  # int64 [rows]


class _Load:
    """Loads a shard: its encoded pictures and labels, nothing else of it."""

    def __init__(
        self, files: Files, names: Sequence[str], classes: Sequence[str], chosen: Sequence[np.ndarray] | None
    ) -> None:
        self.files, self.names, self.chosen = files, names, chosen
        self.number = {name: i for i, name in enumerate(classes)}

    def __call__(self, shard: int) -> _Shard:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.files.path(self.names[shard])) as file:
            table = file.read(columns=["image.bytes", "label"])
        if self.chosen is not None:
            table = table.take(self.chosen[shard])
        labels = [self.number.get(label, len(self.number)) for label in table["label"].to_pylist()]
        return _Shard(pc.struct_field(table["image"], "bytes"), np.array(labels, dtype=np.int64))


def _sizes(files: Files, split: str, chosen: Mapping[str, np.ndarray] | None) -> dict[str, tuple[int, int]]:
    """shard -> (rows, encoded bytes) of what is chosen of it, from the index."""
    import pyarrow.compute as pc

    found: dict[str, tuple[int, int]] = {}
    for table in shards.index(files, ["split", "shard", "row", "bytes"]):
        own = table.filter(pc.equal(table["split"], split))
        names, rows, sizes = own["shard"].to_numpy(), own["row"].to_numpy(), own["bytes"].to_numpy()
        for name in pc.unique(own["shard"]).to_pylist():
            mine = names == name
            in_order = sizes[mine][rows[mine].argsort()]
            if chosen is not None:
                in_order = in_order[chosen.get(name, [])]
            found[name] = len(in_order), int(in_order.sum())
    return found
