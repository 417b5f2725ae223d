"""Weights that a person gives, by label: the mixture to compare a search with, and the one to use when the answer is known.

The domains are the labels themselves, not clusters, and nothing is pruned. A weight is a share of what is drawn (of bytes,
where the samples are texts). Labels that are not named divide what is left in proportion to their natural shares; samples
without a label are one such domain.
"""

from __future__ import annotations

import numpy as np

from components.interfaces import MixtureData
from components.mixture import samples
from components.mixture.climb import PROBLEM
from components.mixture.clustered import Clustered, Setup
from components.mixture.clusters import Clusters
from components.mixture.reporting import Choice
from components.mixture.search import Search
from components.registry import nearest

UNLABELED = "(no label)"


class Manual(Clustered):
    """`weights`: label -> its share of the draws, in sum at most 1. Of `problem` only the proxy, the objective and
    `test_share` are used, for the report."""

    def __init__(self, *, weights: dict[str, float] | None = None, problem: Setup = PROBLEM) -> None:
        super().__init__(problem=problem)
        self.weights = dict(weights or {})
        if min(self.weights.values(), default=0) < 0 or sum(self.weights.values()) > 1 + 1e-9:
            raise ValueError(
                f"mixture.weights: shares from 0 to 1 with a sum of at most 1 are expected, got {self.weights}"
            )

    def clusters(self, data: MixtureData, seed: int) -> Clusters:
        labels = [UNLABELED if label is None else label for label in data.pool_labels]
        names = sorted(set(labels))
        for wanted in self.weights:
            if wanted not in names:
                raise ValueError(
                    f"mixture.weights: no sample of the pool has the label '{wanted}'{nearest(wanted, names)} (there are: "
                    f"{', '.join(names)})"
                )
        if len(self.weights) == len(names) and sum(self.weights.values()) < 1 - 1e-9:
            raise ValueError(
                f"mixture.weights: the sum is {sum(self.weights.values()):g} and no label is left to take the rest; give "
                f"shares with the sum 1"
            )
        number = {name: i for i, name in enumerate(names)}
        of_sample = np.array([number[label] for label in labels])
        return Clusters.of(of_sample, names, samples.of(data.pool).amounts)

    def choose(self, search: Search) -> Choice:
        given = np.array([self.weights.get(name, np.nan) for name in search.names])
        rest = np.isnan(given)
        alpha = np.where(rest, 0.0, given)
        if rest.any():
            alpha[rest] = (1 - alpha.sum()) * search.shares[rest] / search.shares[rest].sum()
        return Choice(alpha / alpha.sum())
