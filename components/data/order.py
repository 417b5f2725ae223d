"""In which order data are read: shuffles and mixtures by position, so that one integer is the whole state of a reader.

1. `Shuffle`: in every epoch the shards are permuted, consecutive ones form windows of bounded size, and the rows of a
   window are shuffled together. Position p, counted over all epochs, is one row; every row comes once an epoch. Finding it
   takes arithmetic, a binary search among the windows and the order of one window; no data are read.
2. `Proportions`: weights become whole quotas of a block (largest remainder); the order inside a block is shuffled. So the
   shares are exact over whole blocks, and which sample of its part comes at a position has a closed form.
All randomness is NumPy's, seeded by (seed, epoch, window) or (seed, block).
Absent on purpose: a shuffle over everything at once (shards would be read in pieces all over the place), and any state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import numpy as np

V = TypeVar("V")

_SHARDS, _ROWS, _BLOCK = 1, 2, 3  # keep the random numbers of these three apart under one seed


class Recent(Generic[V]):
    """A function of integers that keeps its last few results, but takes none of them along to another process."""

    def __init__(self, function: Callable[..., V]) -> None:
        self.function, self._kept = function, lru_cache(4)(function)

    def __call__(self, *numbers: int) -> V:
        return self._kept(*numbers)

    def __reduce__(self) -> tuple[object, ...]:
        return Recent, (self.function,)


class Run(NamedTuple):
    """Consecutive positions inside one window: the i-th is row `rows[i]` of shard `shards[i]`."""

    epoch: int
    window: int  # inside the epoch
    shards: np.ndarray  # int32 [n]
    rows: np.ndarray  # int64 [n]
    places: np.ndarray  # int64 [n]: the same rows, counted through all shards of the window, one after the other


@dataclass(frozen=True)
class _Epoch:
    windows: list[np.ndarray]  # the shards of each window, sorted
    offsets: np.ndarray  # int64 [windows + 1]: the position in the epoch at which a window begins


class Shuffle:
    """An endless shuffled order over the rows of shards.

    `rows[i]` is how many rows shard i has, `sizes[i]` what it takes in memory (its rows where None); a window holds at
    most `window` of the latter, or one shard if that alone is larger. Raises ValueError where there are no rows.

    >>> order = Shuffle([3, 2, 4], seed=0, window=5)
    >>> runs = order.where(0, order.length)
    >>> sorted((int(s), int(r)) for run in runs for s, r in zip(run.shards, run.rows))
    [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]
    """

    def __init__(self, rows: Sequence[int], seed: int, *, window: int, sizes: Sequence[int] | None = None) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.sizes = self.rows if sizes is None else np.asarray(sizes, dtype=np.int64)
        self.seed, self.window = seed, window
        self.length = int(self.rows.sum())  # rows of an epoch
        if not self.length:
            raise ValueError("there is nothing to read: the shards have no rows")
        self._epoch = Recent(self._made_epoch)
        self.order = Recent(self._made_order)

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The shards of each window of an epoch, in the order in which windows are read."""
        return self._epoch(epoch).windows

    def after(self, epoch: int, window: int) -> tuple[int, int]:
        """The window that follows: (epoch, window)."""
        return (epoch, window + 1) if window + 1 < len(self.windows(epoch)) else (epoch + 1, 0)

    def where(self, start: int, stop: int) -> list[Run]:
        """The rows at positions start, ..., stop - 1, in this order."""
        runs: list[Run] = []
        while start < stop:
            number, inside = divmod(start, self.length)
            epoch = self._epoch(number)
            window = int(epoch.offsets.searchsorted(inside, side="right")) - 1
            first = int(epoch.offsets[window])
            count = min(stop - start, int(epoch.offsets[window + 1]) - inside)
            mine = slice(inside - first, inside - first + count)
            runs.append(Run(number, window, *(array[mine] for array in self.order(number, window))))
            start += count
        return runs

    def _made_epoch(self, epoch: int) -> _Epoch:
        shuffled = np.random.default_rng([self.seed, _SHARDS, epoch]).permutation(len(self.rows))
        windows: list[list[int]] = []
        used = 0
        for shard in shuffled[self.rows[shuffled] > 0].tolist():
            size = int(self.sizes[shard])
            if not windows or used + size > self.window:
                windows.append([])
                used = 0
            windows[-1].append(shard)
            used += size
        found = [np.sort(np.array(window)) for window in windows]
        lengths = [int(self.rows[window].sum()) for window in found]
        return _Epoch(found, np.concatenate([[0], np.cumsum(lengths)]))

    def _made_order(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shards, rows, places) of a window as in `Run`, all of them in their order."""
        mine = self.windows(epoch)[window]
        counts = self.rows[mine]
        shuffled = np.random.default_rng([self.seed, _ROWS, epoch, window]).permutation(int(counts.sum()))
        begins = np.cumsum(counts) - counts
        which = np.repeat(np.arange(len(mine)), counts)[shuffled]
        return mine[which].astype(np.int32), shuffled - begins[which], shuffled


def parts_by_weight(rows: Mapping[str, int], weights: np.ndarray) -> list[tuple[float, dict[str, np.ndarray]]]:
    """(weight, numbers of the rows in each shard) of each part of some shards with `rows` whose rows have equal `weights`
    [all rows], as a mixture gives them to its clusters; rows of weight zero are in no part. A `stream.Mixed` of streams over
    these parts draws every row as often as its weight says; every part has windows of its own, so it is for few different
    weights. Raises ValueError for another number of weights.

    >>> parts_by_weight({"a": 2, "b": 1}, np.array([0.25, 0.0, 0.75]))
    [(0.25, {'a': array([0])}), (0.75, {'b': array([0])})]
    """
    ends = np.cumsum([0, *rows.values()])
    if weights.shape != (int(ends[-1]),):
        raise ValueError(f"expected a weight for each of the {ends[-1]} rows, got {weights.shape}")
    found = []
    for weight in np.unique(weights[weights > 0]).tolist():
        own = {
            name: (weights[first:end] == weight).nonzero()[0]
            for name, first, end in zip(rows, ends, ends[1:], strict=False)
        }
        own = {name: chosen for name, chosen in own.items() if len(chosen)}
        found.append((weight * sum(map(len, own.values())), own))
    return found


class Proportions:
    """Which of several parts a sample comes from, in exact proportion to `weights`.

    Any `block` consecutive positions from a multiple of `block` on hold `quotas[k]` samples of part k. A part with any
    weight has at least one place (the largest part gives it). Raises ValueError for weights that are negative or all
    zero, and for more parts than places.

    >>> order = Proportions([0.5, 0.3, 0.2], seed=0, block=10)
    >>> order.quotas.tolist()
    [5, 3, 2]
    >>> parts, places = order.where(20, 30)  # the third block: part 0 has given 10 samples before
    >>> sorted(places[parts == 0].tolist())
    [10, 11, 12, 13, 14]
    """

    def __init__(self, weights: Sequence[float] | np.ndarray, seed: int, *, block: int = 1 << 16) -> None:
        share = np.asarray(weights, dtype=np.float64)
        if share.ndim != 1 or not (share >= 0).all() or not 0 < share.sum() < np.inf:
            raise ValueError(f"expected weights that are not negative and not all zero, got {weights!r}")
        if np.count_nonzero(share) > block:
            raise ValueError(f"{np.count_nonzero(share)} parts have a weight, but a block has only {block} places")
        exact = share / share.sum() * block
        quotas = np.floor(exact).astype(np.int64)
        missing = block - int(quotas.sum())
        quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
        for part in np.flatnonzero((share > 0) & (quotas == 0)):
            quotas[quotas.argmax()] -= 1
            quotas[part] = 1
        self.quotas, self.seed, self.block = quotas, seed, block
        self._block = Recent(self._made_block)

    def where(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(parts [n], places [n]) of positions start, ..., stop - 1: sample `places[i]` of part `parts[i]`. The places of
        one part are consecutive and rising."""
        parts, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            number, inside = divmod(start, self.block)
            count = min(stop - start, self.block - inside)
            chosen, ordinal = (array[inside : inside + count] for array in self._block(number))
            parts.append(chosen)
            places.append(self.quotas[chosen] * number + ordinal)
            start += count
        return np.concatenate(parts), np.concatenate(places)

    def counts(self, position: int) -> np.ndarray:
        """How many samples each part has given before this position, [parts]."""
        number, inside = divmod(position, self.block)
        return self.quotas * number + np.bincount(self._block(number)[0][:inside], minlength=len(self.quotas))

    def _made_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(parts [block], how many of the same part come before in the block [block])"""
        parts = np.repeat(np.arange(len(self.quotas)), self.quotas)
        parts = np.random.default_rng([self.seed, _BLOCK, block]).permutation(parts)
        ordinal = np.empty(self.block, np.int64)
        begins = np.cumsum(self.quotas) - self.quotas
        ordinal[np.argsort(parts, kind="stable")] = np.arange(self.block) - np.repeat(begins, self.quotas)
        return parts, ordinal
