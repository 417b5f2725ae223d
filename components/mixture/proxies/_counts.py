"""Interpolated n-grams whose counts are those of a mixture: what `visual_words` and `byte_ngrams` share.

A token is predicted from coarse to fine contexts, each order smoothing the next one (Dirichlet prior of MacKay and Peto,
1995): p = (count of token and context + smoothing * p of the coarser order) / (count of context + smoothing).
Counts are the alpha-weighted counts of the clusters at a fixed budget of tokens: those that training on the mixture would
see in expectation, so a proxy has no noise of its own and its seed changes nothing. Only counts at the target's events
matter, and the same event is kept once, so training is a weighted sum over clusters.
Deliberately absent: any gain or loss from seeing the same sample again (counts grow linearly with the budget).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from components.mixture.problem import ProxyTask


class Tokens(ABC):
    """Samples as tokens, one after another: `words` [N] int64 in [0, vocabulary), `lengths` [n] tokens a sample."""

    words: np.ndarray
    lengths: np.ndarray
    vocabulary: int
    orders: int

    @abstractmethod
    def context(self, order: int) -> np.ndarray:
        """The number of every token's context, int64 [N], 0 for the coarsest order; small enough that times `vocabulary` it
        is still an int64."""


@dataclass(frozen=True)
class Counts:
    """For every order, how often the average token of a cluster has the event, and its context: [K, U] for the U different
    events of the target. `of_token` [N]: which event a target token is, `of_sample` [N]: in which of `samples` it is."""

    events: list[np.ndarray]
    contexts: list[np.ndarray]
    of_token: np.ndarray
    of_sample: np.ndarray
    samples: int
    vocabulary: int
    smoothing: float

    def bits(self, alpha: np.ndarray, budget: float) -> np.ndarray:
        """Minus log2 of the probability of every target token [N], after training on `budget` tokens of the mixture."""
        probability = np.full(self.events[0].shape[1], 1.0 / self.vocabulary)
        for event, context in zip(self.events, self.contexts, strict=True):
            seen, total = budget * (alpha @ event), budget * (alpha @ context)
            probability = (seen + self.smoothing * probability) / (total + self.smoothing)
        return -np.log2(probability)[self.of_token]

    def losses(self, alpha: np.ndarray, budget: float) -> np.ndarray:
        """Bits per token of every target sample [m]; 0 for one without tokens."""
        tokens = np.maximum(np.bincount(self.of_sample, minlength=self.samples), 1)
        return np.bincount(self.of_sample, self.bits(alpha, budget), self.samples) / tokens


def count(pool: Tokens, of_sample: np.ndarray, target: Tokens, smoothing: float) -> Counts:
    """`of_sample` [n]: the cluster of each pool sample, -1 where pruned."""
    cluster = np.repeat(of_sample, pool.lengths)
    inside = cluster >= 0
    cluster = cluster[inside]
    totals = np.bincount(cluster)  # tokens
    first, of_token = _distinct(target)
    events, contexts = [], []
    for order in range(pool.orders):
        here, wanted = pool.context(order)[inside], target.context(order)[first]
        contexts.append(_rates(here, wanted, cluster, totals))
        joint = here * pool.vocabulary + pool.words[inside]
        events.append(_rates(joint, wanted * pool.vocabulary + target.words[first], cluster, totals))
    samples = len(target.lengths)
    where = np.repeat(np.arange(samples), target.lengths)
    return Counts(events, contexts, of_token, where, samples, pool.vocabulary, smoothing)


def _distinct(target: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are the same in all orders count as one: (the first of each [U], which one a token is [N])."""
    which = target.words
    for order in range(target.orders):
        _, context = np.unique(target.context(order), return_inverse=True)
        _, first, which = np.unique(which * (context.max() + 1) + context, return_index=True, return_inverse=True)
    return first, which


def _rates(keys: np.ndarray, wanted: np.ndarray, cluster: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """How often each wanted key [U] is among the keys [N] of a cluster, a token: [K, U]."""
    import pandas as pd

    distinct, back = np.unique(wanted, return_inverse=True)
    place = pd.Index(distinct).get_indexer(keys)
    hit = place >= 0
    size, clusters = len(distinct), len(totals)
    counts = np.bincount(cluster[hit] * size + place[hit], minlength=clusters * size).reshape(clusters, size)
    return (counts * (1.0 / totals)[:, None])[:, back]


@dataclass(frozen=True)
class CountsTask(ProxyTask):
    """A proxy sees `budget` tokens, the final model `final_budget`."""

    search: Counts
    test: Counts
    budget: float
    final_budget: float

    @classmethod
    def of(
        cls,
        pool: Tokens,
        of_sample: np.ndarray,
        search: Tokens,
        test: Tokens,
        *,
        smoothing: float,
        budget: int,
        final_budget: int,
    ) -> CountsTask:
        """`of_sample` [n]: the cluster of each pool sample, -1 where pruned."""
        searched, tested = (count(pool, of_sample, part, smoothing) for part in (search, test))
        return cls(searched, tested, float(budget), float(final_budget))

    def search_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        return self.search.losses(alpha, self.budget)

    def test_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        return self.test.losses(alpha, self.final_budget)
