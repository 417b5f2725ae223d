"""Token arrays as a stream: rows of `<split>/*.tokens.npy`, which the tokens stage writes.

The shards of a window are copied into one array, in the order of the files and ahead of their use; a batch is then one
gather. So data that do not fit the memory are read from one end of a file to the other, not row by row from all over it.
Absent on purpose: another process to read them - handing tokens over costs more than having them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from components.data.order import Shuffle
from components.data.stream import Stream
from components.data.windows import Windows, together
from components.interfaces import Files

Piece = tuple[str, int, int]  # a file and rows [start, stop) of it


class TokenStream(Stream[dict[str, Tensor]]):
    """{"tokens": int64 [n, L], "labels": int64 [n]} from `<split>/*.tokens.npy` [rows, L] and `*.labels.npy` [rows].

    `window`: bytes of tokens that are shuffled together; up to `windows.KEPT` times as much is in memory. Larger files are
    read in pieces. The labels tell how many rows a file of tokens has, so it is not fetched before its turn (but for the
    first one, which tells their length). Reading is everything here, making passes on. Raises ValueError for a split
    without rows."""

    def __init__(self, files: Files, split: str = "train", *, seed: int, window: int = 128 << 20) -> None:
        ending = ".labels.npy"
        names = [n.removesuffix(ending) for n in files.names() if n.startswith(f"{split}/") and n.endswith(ending)]
        if not names:
            raise ValueError(f"there is nothing to read: no {split}/*{ending}")
        labels = [np.load(files.path(f"{name}{ending}")).astype(np.int32) for name in names]
        first = np.load(files.path(f"{names[0]}.tokens.npy"), mmap_mode="r")
        self.tokens = first.shape[1]  # L
        size = self.tokens * first.itemsize  # bytes of a row
        step = max(window // size, 1)
        pieces: list[Piece] = [
            (f"{name}.tokens.npy", start, min(start + step, len(own)))
            for name, own in zip(names, labels, strict=True)
            for start in range(0, len(own), step)
        ]
        rows = [stop - start for _, start, stop in pieces]
        self.labels = np.concatenate(labels)
        self.begins = np.cumsum(rows) - rows  # where the labels of a piece begin
        self.order = Shuffle(rows, seed, window=window, sizes=[count * size for count in rows])
        self.length = self.order.length
        self.windows = Windows(self.order, _Load(files, pieces), together)

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        tokens, labels = np.empty((stop - start, self.tokens), np.int64), np.empty(stop - start, np.int64)
        done = 0
        for run in self.order.where(start, stop):
            [window] = self.windows.of(run.epoch, run.window).values()
            here = slice(done, done + len(run.rows))
            tokens[here] = window[run.places]
            labels[here] = self.labels[self.begins[run.shards] + run.rows]
            done = here.stop
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}

    def make(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        return stored


class _Load:
    """Reads the pieces of a window into one array."""

    def __init__(self, files: Files, pieces: Sequence[Piece]) -> None:
        self.files, self.pieces = files, pieces

    def __call__(self, window: tuple[int, ...]) -> np.ndarray:
        found = (self.pieces[piece] for piece in window)
        return np.concatenate(
            [np.load(self.files.path(name), mmap_mode="r")[start:stop] for name, start, stop in found]
        )
