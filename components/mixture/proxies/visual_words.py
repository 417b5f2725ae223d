"""A next-token model in small: an interpolated n-gram over visual words, trained on a mixture in a millisecond.

Pictures are cut into patches, k-means over patches of pool and target gives the words, and a picture is its words in
reading order. p(word | context) is interpolated from coarse to fine (_counts.py): uniform, word, position, word above,
words above and to the left.
Deliberately absent: longer contexts, and any gain from repeating the same sample.
"""

from __future__ import annotations

import numpy as np

from components.mixture.problem import Proxy, ProxyData, ProxyTask
from components.mixture.proxies._counts import CountsTask, Tokens


def patches(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n, C, H, W] -> float32 [n, rows, columns, C * side * side] in [0, 1]; a rest at the edges is left out."""
    n, channels, height, width = images.shape
    rows, columns = height // side, width // side
    cut = images[:, :, : rows * side, : columns * side].reshape(n, channels, rows, side, columns, side)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(n, rows, columns, -1).astype(np.float32) / 255.0


class Words(Tokens):
    """Words [n, rows, columns] in [0, vocabulary)."""

    orders = 4

    def __init__(self, words: np.ndarray, vocabulary: int) -> None:
        self.grid, self.vocabulary = words, vocabulary
        self.words = words.reshape(-1)
        self.lengths = np.full(len(words), words.shape[1] * words.shape[2])

    def context(self, order: int) -> np.ndarray:
        _, rows, columns = self.grid.shape
        outside = self.vocabulary  # the word beyond the edge
        left = np.pad(self.grid, ((0, 0), (0, 0), (1, 0)), constant_values=outside)[:, :, :-1]
        above = np.pad(self.grid, ((0, 0), (1, 0), (0, 0)), constant_values=outside)[:, :-1]
        position = np.broadcast_to(np.arange(rows * columns).reshape(rows, columns), self.grid.shape)
        orders = [np.zeros_like(self.grid), position, above, above * (outside + 1) + left]
        return orders[order].reshape(-1)


class VisualWords(Proxy[np.ndarray]):
    """`patch` pixels a side, `words` in the codebook; a proxy sees `budget` tokens, the final model `final_budget`."""

    modality = "image"

    def __init__(
        self,
        *,
        patch: int = 4,
        words: int = 32,
        budget: int = 10_000,
        final_budget: int = 50_000,
        smoothing: float = 32.0,
    ) -> None:
        self.patch, self.words, self.smoothing = patch, words, smoothing
        self.budget, self.final_budget = budget, final_budget

    def prepare(self, data: ProxyData[np.ndarray], seed: int) -> ProxyTask:
        from sklearn.cluster import KMeans

        cut = [patches(images, self.patch) for images in (data.pool, data.search, data.test)]
        rng = np.random.default_rng(seed)
        # the codebook serves pool and target alike: the same number of patches of both, and none of the test part
        fit = np.concatenate([_some(part.reshape(-1, part.shape[-1]), 10_000, rng) for part in cut[:2]])
        distinct = len(np.unique(fit, axis=0))
        model = KMeans(min(self.words, distinct), n_init=1, max_iter=30, random_state=seed).fit(fit)
        pool, search, test = (
            Words(model.predict(part.reshape(-1, part.shape[-1])).reshape(part.shape[:3]).astype(int), self.words)
            for part in cut
        )
        budgets = {"budget": self.budget, "final_budget": self.final_budget}
        return CountsTask.of(pool, data.clusters.of_sample, search, test, smoothing=self.smoothing, **budgets)


def _some(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """`most` rows, drawn with replacement where there are fewer."""
    return rows[rng.choice(len(rows), most, replace=len(rows) < most)]
