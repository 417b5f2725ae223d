"""Documents of any length as sequences of one length: concatenated in the shuffled order of an epoch, then cut.

1. Documents stand in `<split>/*.tokens.npy` (flat integers) and `*.lengths.npy` (tokens of each, in order); windows of
   shards are shuffled as by `order.Shuffle`, documents being the rows.
2. The lengths alone tell where a document stands in the epoch: windows have known sums, inside one a running sum in the
   shuffled order. So any sequence is found by two binary searches, and no token is read to find it.
3. A document that does not fit goes on in the next sequence. Every token comes exactly once an epoch; only the last
   sequence of an epoch is padded.
`segments` numbers the documents of a sequence from 1 on; 0 is padding. Attention and loss are kept inside a segment by
whoever uses it.
Absent on purpose: special tokens between documents (they belong to the tokenizer), and packing that avoids cuts by leaving
gaps (best-fit): it would lose either tokens or the random access.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from components.data.order import Recent, Shuffle
from components.data.shards import DataError
from components.data.stream import Stream
from components.data.token_stream import mapped
from components.data.windows import Windows
from components.interfaces import Files


class PackedTokens(Stream[dict[str, Tensor]]):
    """{"tokens": int64 [n, size], "segments": int64 [n, size]}; a sample is a sequence of `size` tokens.

    `window`: tokens whose documents are shuffled together. `pad` fills the end of an epoch. Documents without tokens are
    left out. Raises DataError for a split that is not there and for a shard whose tokens are not those of its lengths,
    ValueError where there are no tokens."""

    def __init__(
        self, files: Files, split: str = "train", *, size: int, seed: int, window: int = 1 << 26, pad: int = 0
    ) -> None:
        ending = ".lengths.npy"
        names = [n.removesuffix(ending) for n in files.names() if n.startswith(f"{split}/") and n.endswith(ending)]
        if not names:
            raise DataError(f"there is nothing to read: no {split}/*{ending}")
        lengths = [np.load(files.path(f"{name}{ending}")) for name in names]
        self.stops = [np.cumsum(found[found > 0], dtype=np.int64) for found in lengths]  # of each document in its shard
        totals = [int(found.sum()) for found in lengths]
        self.order = Shuffle([len(stops) for stops in self.stops], seed, window=window, sizes=totals)
        self.windows = Windows(self.order, _Open(files, [f"{name}.tokens.npy" for name in names], totals))
        self.totals, self.size, self.pad = np.array(totals), size, pad
        self.tokens = sum(totals)  # of an epoch
        self.length = -(-self.tokens // size)  # sequences of an epoch
        self._offsets, self._ends = Recent(self._made_offsets), Recent(self._made_ends)

    @property
    def padding(self) -> float:
        """The share of an epoch that is padding."""
        return 1 - self.tokens / (self.length * self.size)

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        tokens = np.full((stop - start, self.size), self.pad, np.int64)
        segments = np.zeros((stop - start, self.size), np.int64)
        done = 0
        while start < stop:
            epoch, first = divmod(start, self.length)
            count = min(stop - start, self.length - first)
            pieces = list(self._pieces(epoch, first * self.size, min((first + count) * self.size, self.tokens)))
            lengths = [len(piece) for piece in pieces]
            here = slice(done * self.size, done * self.size + sum(lengths))
            np.concatenate(pieces, out=tokens.reshape(-1)[here])
            segments.reshape(-1)[here] = np.repeat(np.arange(1, len(pieces) + 1), lengths)
            start, done = start + count, done + count
        segments -= np.where(segments > 0, segments[:, :1] - 1, 0)  # the first document of each sequence is 1
        return {"tokens": torch.from_numpy(tokens), "segments": torch.from_numpy(segments)}

    def make(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        return stored

    def _pieces(self, epoch: int, begin: int, end: int) -> Iterator[np.ndarray]:
        """The documents, whole or in part, that tokens begin, ..., end - 1 of an epoch are made of."""
        offsets = self._offsets(epoch)
        while begin < end:
            window = int(offsets.searchsorted(begin, side="right")) - 1
            at, stop = (place - int(offsets[window]) for place in (begin, min(end, int(offsets[window + 1]))))
            shards, (numbers, rows, _) = self.windows.of(epoch, window), self.order.order(epoch, window)
            ends = self._ends(epoch, window)
            document = int(ends.searchsorted(at, side="right"))
            while at < stop:
                shard = int(numbers[document])
                left = int(ends[document]) - at  # tokens of the document from here on
                source = int(self.stops[shard][rows[document]]) - left
                count = min(left, stop - at)
                yield shards[shard][source : source + count]
                at, document = at + count, document + 1
            begin = stop + int(offsets[window])

    def _made_offsets(self, epoch: int) -> np.ndarray:
        """Where each window of an epoch begins, in tokens, and where the last one ends; [windows + 1]"""
        return np.cumsum([0, *(int(self.totals[shards].sum()) for shards in self.order.windows(epoch))])

    def _made_ends(self, epoch: int, window: int) -> np.ndarray:
        """Where each document of a window ends, in tokens from its beginning, in the shuffled order; [documents]"""
        shards = self.order.windows(epoch)[window].tolist()
        lengths = np.concatenate([np.diff(self.stops[shard], prepend=0) for shard in shards])
        return np.cumsum(lengths[self.order.order(epoch, window)[2]])


class _Open:
    """Opens a shard of documents; it must have as many tokens as their lengths say."""

    def __init__(self, files: Files, names: Sequence[str], totals: Sequence[int]) -> None:
        self.files, self.names, self.totals = files, names, totals

    def __call__(self, shard: int) -> np.ndarray:
        tokens = mapped(self.files.path(self.names[shard]))
        if tokens.shape != (self.totals[shard],):
            raise DataError(
                f"{self.names[shard]} has the shape {tokens.shape}, but its lengths sum up to {self.totals[shard]}; "
                "write both again"
            )
        return tokens
