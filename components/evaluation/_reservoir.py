"""A bounded number of feature vectors, each of all that came by equally likely to be among them."""

from __future__ import annotations

import torch
from torch import Tensor

from components.evaluation._numbers import Numbers, uniform


class Reservoir:
    """At most `size` rows [n, F] float32 of a stream, in random order.

    Every row has a random key that follows from its number (`EvaluationBatch.numbers`; else they are counted as they come);
    those with the smallest keys stay, in the order of the keys. So reservoirs of several workers merge to the very rows that
    one would have kept of all, in the same order."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seed, self.numbers = size, seed, Numbers()
        self.rows: Tensor | None = None
        self.keys = torch.empty(0, dtype=torch.float64, device="cpu")

    def update(self, features: Tensor, numbers: Tensor | None = None) -> None:
        """features [B, F], numbers [B]"""
        keys = uniform(self.numbers.of(numbers, len(features)), 1, self.seed)[:, 0]
        self._take(features.detach().float().cpu(), keys)

    def merge(self, other: Reservoir) -> None:
        if other.rows is not None:
            self._take(other.rows, other.keys)

    def _take(self, rows: Tensor, keys: Tensor) -> None:
        if self.rows is not None:
            if len(self.keys) == self.size:
                near = keys < self.keys[-1]
                rows, keys = rows[near], keys[near]
            rows, keys = torch.cat([self.rows, rows]), torch.cat([self.keys, keys])
        kept = keys.argsort(stable=True)[: self.size]
        self.rows, self.keys = rows[kept], keys[kept]
