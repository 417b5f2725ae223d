"""Random numbers that follow from the number of an image: the same whoever measures it, in whichever batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def uniform(numbers: Tensor, count: int, seed: int) -> Tensor:
    """[B] int64 -> [B, count] float64 in [0, 1), a function of number, column and seed alone.

    The SplitMix64 generator, of which every state can be reached at once (Steele, Lea, Flood 2014)."""
    stream = _mix(numbers.cpu().numpy().astype(np.uint64) ^ _mix(np.array([seed], np.uint64)))  # [B]
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return torch.from_numpy((_mix(stream[:, None] + steps) >> np.uint64(11)) * 2.0**-53)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit integers; no two give the same."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Numbers:
    """Of the rows of a stream: those that are given, or else one after another as they come.

    >>> numbers = Numbers()
    >>> numbers.of(None, 2).tolist(), numbers.of(None, 2).tolist()
    ([0, 1], [2, 3])
    """

    def __init__(self) -> None:
        self.seen = 0

    def of(self, given: Tensor | None, rows: int) -> Tensor:
        """[rows] int64"""
        start, self.seen = self.seen, self.seen + rows
        return torch.arange(start, self.seen, device="cpu") if given is None else given[:rows].cpu()
