"""A bounded number of feature vectors, each of all that came by equally likely to be among them."""

from __future__ import annotations

import torch
from torch import Tensor


class Reservoir:
    """At most `size` rows [n, F] float32 of a stream, drawn with a fixed random stream: the same batches give the same rows.

    Every row gets a random number when it comes; those with the smallest stay. So reservoirs of several workers merge."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.rng = size, torch.Generator().manual_seed(seed)
        self.rows: Tensor | None = None
        self.keys = torch.empty(0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        rows = features.detach().float().cpu()
        self._take(rows, torch.rand(len(rows), generator=self.rng, dtype=torch.float64))

    def merge(self, other: Reservoir) -> None:
        if other.rows is not None:
            self._take(other.rows, other.keys)

    def _take(self, rows: Tensor, keys: Tensor) -> None:
        rows = rows if self.rows is None else torch.cat([self.rows, rows])
        keys = torch.cat([self.keys, keys])
        if len(rows) > self.size:
            kept = keys.topk(self.size, largest=False).indices.sort().values
            rows, keys = rows[kept], keys[kept]
        self.rows, self.keys = rows, keys
