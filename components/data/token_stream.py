"""Token arrays as a stream: rows of `<split>/*.tokens.npy`, which the tokens stage writes, mapped into memory.

1. The shards of the window to come are touched from one end to the other, so that the system has read them when the
   shuffled rows are asked for; how much of them stays in memory is its business.
2. A batch is gathered with one NumPy call for each shard that it touches.
Absent on purpose: another process to do this - handing tokens over costs more than having them.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.data.order import Run, Shuffle
from components.data.shards import DataError
from components.data.stream import Stream
from components.data.windows import Windows
from components.interfaces import Files

_HEADER = re.compile(rb"\{'descr': '([<>|=]?[iub]\d+)', 'fortran_order': False, 'shape': \(([\d, ]*)\)")
Piece = tuple[str, int, int]  # the name of a shard and rows [start, stop) of it
_ENDING = ".labels.npy"


class TokenStream(Stream[dict[str, Tensor]]):
    """{"tokens": int64 [n, L], "labels": int64 [n]} from `<split>/*.tokens.npy` [rows, L] and `*.labels.npy` [rows].

    `window`: bytes of tokens that are shuffled together; up to `windows.KEPT` times as much is mapped. Larger files are read
    in pieces. `rows`: name of a file without its endings -> numbers of the rows to read, for a stream over some of them only
    (a cluster of a mixture); of files that are not named none is read. The labels tell how many rows a file of tokens has,
    so it is not fetched before its turn (but for the first one, which tells their length). Reading is everything here,
    making passes on. Raises DataError for a split that is not there, ValueError for one without rows."""

    def __init__(
        self,
        files: Files,
        split: str = "train",
        *,
        seed: int,
        window: int = 128 << 20,
        rows: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        labels = {name: found.astype(np.int32) for name, found in _labels(files, split).items()}
        if not labels:
            raise DataError(f"there is nothing to read: no {split}/*{_ENDING}")
        first = np.load(files.path(f"{next(iter(labels))}.tokens.npy"), mmap_mode="r")
        size = first.shape[1] * first.itemsize  # bytes of a row
        step = max(window // size, 1)
        pieces: list[Piece] = []
        chosen: list[np.ndarray] = []  # of each piece, counted from its beginning
        for name, own in labels.items():
            wanted = None if rows is None else np.sort(rows.get(name, np.empty(0, np.int64)))
            for start in range(0, len(own), step):
                stop = min(start + step, len(own))
                mine = None if wanted is None else wanted[(wanted >= start) & (wanted < stop)] - start
                if mine is None or len(mine):
                    pieces.append((name, start, stop))
                    chosen += [] if mine is None else [mine]
        counts = [len(mine) for mine in chosen] if rows is not None else [stop - start for _, start, stop in pieces]
        begins = np.cumsum([0, *map(len, labels.values())])
        begins_of = dict(zip(labels, begins.tolist(), strict=False))
        self.tokens = first.shape[1]  # L
        self.labels = np.concatenate(list(labels.values()))
        self.begins = np.array(
            [begins_of[name] + start for name, start, _ in pieces]
        )  # where the labels of a piece begin
        self.chosen = chosen if rows is not None else None
        self.order = Shuffle(counts, seed, window=window, sizes=[(stop - start) * size for _, start, stop in pieces])
        self.length = self.order.length
        self.windows = Windows(self.order, _Open(files, pieces))

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        tokens, labels = np.empty((stop - start, self.tokens), np.int64), np.empty(stop - start, np.int64)
        done = 0
        for run in self.order.where(start, stop):
            here = slice(done, done + len(run.rows))
            rows = run.rows if self.chosen is None else self._chosen(run)
            _gather(self.windows.of(run.epoch, run.window), run.shards, rows, tokens[here])
            labels[here] = self.labels[self.begins[run.shards] + rows]
            done = here.stop
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}

    def make(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        return stored

    def _chosen(self, run: Run) -> np.ndarray:
        """The rows of a run, counted through their pieces."""
        assert self.chosen is not None
        found = np.empty(len(run.rows), np.int64)
        for piece in set(run.shards.tolist()):
            mine = run.shards == piece
            found[mine] = self.chosen[piece][run.rows[mine]]
        return found


def rows_of(files: Files, split: str) -> dict[str, int]:
    """File of a split, without its endings -> the number of its rows, in their order; none of a split that is not there."""
    return {name: len(found) for name, found in _labels(files, split).items()}


def _labels(files: Files, split: str) -> dict[str, np.ndarray]:
    names = [n.removesuffix(_ENDING) for n in files.names() if n.startswith(f"{split}/") and n.endswith(_ENDING)]
    return {name: np.load(files.path(f"{name}{_ENDING}"), mmap_mode="r") for name in names}


class _Open:
    """Opens a piece."""

    def __init__(self, files: Files, pieces: Sequence[Piece]) -> None:
        self.files, self.pieces = files, pieces

    def __call__(self, piece: int) -> np.ndarray:
        name, start, stop = self.pieces[piece]
        return mapped(self.files.path(f"{name}.tokens.npy"), start, stop)


def mapped(path: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows of a .npy file, mapped, after having been read once from one end to the other. Raises DataError for a file
    that numpy.save has not written."""
    with path.open("rb") as file:
        # numpy.load parses the header with `ast`, which in Python 3.11 can fail while another thread does so, too.
        magic = file.read(8)  # and the version
        header = file.read(int.from_bytes(file.read(2 if magic[6:7] == b"\1" else 4), "little"))
        found = _HEADER.match(header) if magic.startswith(np.lib.format.MAGIC_PREFIX) else None
        if found is None:
            raise DataError(f"{path} is not an array of numbers as numpy.save writes it; write it again")
        shape = tuple(int(length) for length in found[2].split(b",") if length.strip())
        whole = np.memmap(file, np.dtype(found[1].decode()), "r", file.tell(), shape)
    rows = whole.view(np.ndarray)[start:stop]  # numpy.memmap itself makes an object with a file of every slice
    if rows.size:
        rows.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max()  # NumPy lets other threads run meanwhile
    return rows


def _gather(found: Mapping[int, np.ndarray], shards: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """Copies rows of some shards."""
    for shard in set(shards.tolist()):
        mine = (shards == shard).nonzero()[0]
        out[mine] = found[shard][rows[mine]]
