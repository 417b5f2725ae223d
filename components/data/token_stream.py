"""Token arrays as a stream: rows of `<split>/*.tokens.npy`, which the tokens stage writes, mapped into memory.

A batch is gathered with one NumPy call for each shard that it touches; that is the memory's speed, so it needs no other
process. What is mapped are the shards of the windows in use; how much of them stays in memory is the system's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from components.data.order import Run, Shuffle
from components.data.stream import Stream
from components.data.windows import Windows
from components.interfaces import Files


class TokenStream(Stream[dict[str, Tensor]]):
    """{"tokens": int64 [n, L], "labels": int64 [n]} from `<split>/*.tokens.npy` [rows, L] and `*.labels.npy` [rows].

    Shards are mapped, not read: `window` bounds the rows among which a batch is spread, and so what the system has to keep
    in its file cache. Their sizes are those of the labels, so no token shard is fetched before its turn. Reading is
    everything here; making passes on."""

    def __init__(self, files: Files, split: str = "train", *, seed: int, window: int = 1 << 20) -> None:
        ending = ".labels.npy"
        self.names = [n.removesuffix(ending) for n in files.names() if n.startswith(f"{split}/") and n.endswith(ending)]
        labels = [np.load(files.path(f"{name}{ending}")) for name in self.names]
        self.labels = np.concatenate(labels) if labels else np.empty(0, np.int64)
        counts = [len(part) for part in labels]
        self.begins = np.cumsum(counts, dtype=np.int64) - counts  # where the labels of a shard begin
        self.order = Shuffle(counts, seed, window=window)
        self.length = self.order.length
        self.windows = Windows(self.order, Mapped(files, [f"{name}.tokens.npy" for name in self.names]))

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        runs = self.order.where(start, stop)
        tokens, labels, done = None, np.empty(stop - start, np.int64), 0
        for run in runs:
            shards = self.windows.of(run.epoch, run.window)
            if tokens is None:
                tokens = np.empty((stop - start, shards[int(run.shards[0])].shape[1]), np.int64)
            _gather(shards, run, tokens[done : done + len(run.rows)])
            labels[done : done + len(run.rows)] = self.labels[self.begins[run.shards] + run.rows]
            done += len(run.rows)
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}

    def make(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        return stored


class Mapped:
    """Opens a shard of numbers."""

    def __init__(self, files: Files, names: Sequence[str]) -> None:
        self.files, self.names = files, names

    def __call__(self, shard: int) -> np.ndarray:
        # A plain view of the map: numpy.memmap makes an object with a file of every slice.
        return np.load(self.files.path(self.names[shard]), mmap_mode="r").view(np.ndarray)


def _gather(shards: Mapping[int, np.ndarray], run: Run, out: np.ndarray) -> None:
    """Copies the rows of a run; one call a shard, not one a row."""
    order = run.shards.argsort(kind="stable")
    sorted_shards, rows = run.shards[order], run.rows[order]
    cuts = [0, *(np.flatnonzero(np.diff(sorted_shards)) + 1).tolist(), len(order)]
    for first, last in pairwise(cuts):
        out[order[first:last]] = shards[int(sorted_shards[first])][rows[first:last]]
