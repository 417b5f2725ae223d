"""A next-token model in small: an interpolated n-gram over visual words, trained on a mixture in a millisecond.

Pictures are cut into patches, k-means over patches of pool and target gives the words, and a picture is its words in
reading order. p(word | context) is interpolated from coarse to fine, each order smoothing the next one (Dirichlet
prior of MacKay and Peto, 1995): uniform, word, position, word above, words above and to the left.
Its counts are the alpha-weighted counts of the clusters at a fixed budget of tokens: the counts that training on the
mixture would see in expectation, so a proxy has no noise of its own and its seed changes nothing.
Only the counts at the target's events matter, so these alone are kept, for each cluster: training is a weighted sum.
Deliberately absent: longer contexts, and any gain from repeating the same sample (counts scale linearly).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.mixture.problem import Proxy, ProxyData, ProxyTask


def patches(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 [n, C, H, W] -> float32 [n, rows, columns, C * side * side] in [0, 1]; a rest at the edges is left out."""
    n, channels, height, width = images.shape
    rows, columns = height // side, width // side
    cut = images[:, :, : rows * side, : columns * side].reshape(n, channels, rows, side, columns, side)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(n, rows, columns, -1).astype(np.float32) / 255.0


def contexts(words: np.ndarray, vocabulary: int) -> list[np.ndarray]:
    """Words [n, rows, columns] -> context number of every word, coarse to fine, each [n * rows * columns]."""
    _, rows, columns = words.shape
    outside = vocabulary  # the word beyond the edge
    left = np.pad(words, ((0, 0), (0, 0), (1, 0)), constant_values=outside)[:, :, :-1]
    above = np.pad(words, ((0, 0), (1, 0), (0, 0)), constant_values=outside)[:, :-1]
    position = np.broadcast_to(np.arange(rows * columns).reshape(rows, columns), words.shape)
    orders = [np.zeros_like(words), position, above, above * (vocabulary + 1) + left]
    return [order.reshape(-1) for order in orders]


@dataclass(frozen=True)
class _Counts:
    """For every order: how often a cluster's average token has the event (and its context), [clusters, events]."""

    events: list[np.ndarray]
    contexts: list[np.ndarray]
    tokens: int  # per sample
    vocabulary: int
    smoothing: float

    def losses(self, alpha: np.ndarray, budget: float) -> np.ndarray:
        """Bits per token of every target sample [m], after training on `budget` tokens of the mixture alpha."""
        probability = np.full(self.events[0].shape[1], 1.0 / self.vocabulary)
        for event, context in zip(self.events, self.contexts, strict=True):
            seen, total = budget * (alpha @ event), budget * (alpha @ context)
            probability = (seen + self.smoothing * probability) / (total + self.smoothing)
        return -np.log2(probability).reshape(-1, self.tokens).mean(axis=1)


@dataclass(frozen=True)
class _Task(ProxyTask):
    search: _Counts
    test: _Counts
    budget: float
    final_budget: float

    def search_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        return self.search.losses(alpha, self.budget)

    def test_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        return self.test.losses(alpha, self.final_budget)


class VisualWords(Proxy):
    """`patch` pixels a side, `words` in the codebook; a proxy sees `budget` tokens, the final model `final_budget`."""

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

    def prepare(self, data: ProxyData, seed: int) -> ProxyTask:
        from sklearn.cluster import KMeans

        cut = [patches(images, self.patch) for images in (data.pool, data.search, data.test)]
        rng = np.random.default_rng(seed)
        # the codebook serves pool and target alike: the same number of patches of both, and none of the test part
        fit = np.concatenate([_some(part.reshape(-1, part.shape[-1]), 10_000, rng) for part in cut[:2]])
        distinct = len(np.unique(fit, axis=0))
        model = KMeans(min(self.words, distinct), n_init=1, max_iter=30, random_state=seed).fit(fit)
        words = [model.predict(part.reshape(-1, part.shape[-1])).reshape(part.shape[:3]).astype(int) for part in cut]
        pool, search, test = words
        return _Task(
            self._counts(pool, data, search),
            self._counts(pool, data, test),
            float(self.budget),
            float(self.final_budget),
        )

    def _counts(self, pool: np.ndarray, data: ProxyData, target: np.ndarray) -> _Counts:
        v, clusters = self.words, data.clusters
        per_sample = pool.shape[1] * pool.shape[2]
        cluster = np.repeat(clusters.of_sample, per_sample)
        word, event_word = pool.reshape(-1), target.reshape(-1)
        events, contexts_ = [], []
        for source, wanted in zip(contexts(pool, v), contexts(target, v), strict=True):
            size = int(max(source.max(), wanted.max())) + 1
            rows = []
            for k in range(len(clusters.sizes)):
                mine = cluster == k
                joint = np.bincount(source[mine] * v + word[mine], minlength=size * v)
                marginal = joint.reshape(size, v).sum(axis=1)
                share = 1.0 / mine.sum()
                rows.append((joint[wanted * v + event_word] * share, marginal[wanted] * share))
            events.append(np.stack([r[0] for r in rows]))
            contexts_.append(np.stack([r[1] for r in rows]))
        return _Counts(events, contexts_, per_sample, v, self.smoothing)


def _some(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """`most` rows, drawn with replacement where there are fewer."""
    return rows[rng.choice(len(rows), most, replace=len(rows) < most)]
