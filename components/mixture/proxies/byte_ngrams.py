"""A language model in small: an interpolated n-gram over bytes, trained on a mixture in milliseconds.

p(byte | the bytes before it) is interpolated from coarse to fine (_counts.py): uniform, byte, one byte before, two, ... up to
`order` - 1. A text begins after a byte of its own that nothing else has. The loss is in bits per byte.
Memory: 16 bytes a cluster and order for each different n-gram of the target.
Deliberately absent: words, longer contexts, and any gain from repeating the same sample.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from components.mixture.problem import Proxy, ProxyData, ProxyTask
from components.mixture.proxies._counts import CountsTask, Tokens


class Bytes(Tokens):
    """Texts as UTF-8; the context of order j is the j bytes before, 0 where the text has not begun (a byte b is b + 1)."""

    vocabulary = 256

    def __init__(self, texts: list[str], orders: int) -> None:
        encoded = [text.encode() for text in texts]
        self.orders = orders
        self.lengths = np.array([len(data) for data in encoded])
        self.words = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64)
        self._places = np.arange(len(self.words)) + orders * np.repeat(np.arange(1, len(texts) + 1), self.lengths)
        self._padded = np.zeros(len(self.words) + orders * len(texts), np.int64)
        self._padded[self._places] = self.words + 1

    def context(self, order: int) -> np.ndarray:
        number = np.zeros(len(self.words), np.int64)
        for before in range(1, order + 1):
            number = number * 257 + self._padded[self._places - before]
        return number


class ByteNgrams(Proxy[list[str]]):
    """`order` bytes with the one that is predicted; a proxy sees `budget` bytes, the final model `final_budget`."""

    modality = "text"

    def __init__(
        self,
        *,
        order: Annotated[int, Field(ge=1, le=7)] = 5,
        budget: Annotated[int, Field(ge=1)] = 1_000_000,
        final_budget: Annotated[int, Field(ge=1)] = 5_000_000,
        smoothing: Annotated[float, Field(gt=0)] = 8.0,
    ) -> None:
        self.order, self.smoothing = order, smoothing
        self.budget, self.final_budget = budget, final_budget

    def prepare(self, data: ProxyData[list[str]], seed: int) -> ProxyTask:
        pool, search, test = (Bytes(texts, self.order) for texts in (data.pool, data.search, data.test))
        budgets = {"budget": self.budget, "final_budget": self.final_budget}
        return CountsTask.of(pool, data.clusters.of_sample, search, test, smoothing=self.smoothing, **budgets)
