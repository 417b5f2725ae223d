"""Domains for data without labels: fine k-means, pruning of whole clusters, Ward merging (CLIMB, phase 1).

Samples never move: a sample of a pruned cluster is out, all others are in exactly one merged cluster, and are drawn
uniformly inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict


@dataclass(frozen=True)
class Clusters:
    """`of_sample` [n] int64 in [0, K), -1 where pruned; `sizes` [K] samples, `amounts` [K] what these hold (bytes of texts;
    pictures count one each). Names are for people and change nothing.

    A weight is a share of what is drawn in the unit of the amounts, as the paper's are shares of tokens."""

    of_sample: np.ndarray
    sizes: np.ndarray
    amounts: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, of_sample: np.ndarray, names: Sequence[str] | None = None, amounts: np.ndarray | None = None
    ) -> Clusters:
        """`amounts` [n] of every sample; None: all hold the same."""
        inside = of_sample >= 0
        sizes = np.bincount(of_sample[inside])
        held = sizes.astype(float) if amounts is None else np.bincount(of_sample[inside], amounts[inside])
        return cls(of_sample, sizes, held, tuple(names or (f"c{i:02d}" for i in range(len(sizes)))))

    @property
    def shares(self) -> np.ndarray:
        """Natural shares [K] of the surviving samples, sum 1."""
        return self.amounts / self.amounts.sum()

    def sample_weights(self, alpha: np.ndarray) -> np.ndarray:
        """Cluster weights [K] -> probability of every sample [n], sum 1: alike inside a cluster, and such that the expected
        share of what is drawn from cluster k is alpha[k]."""
        inside = self.of_sample >= 0
        weights = np.where(inside, (alpha / self.amounts)[self.of_sample], 0.0)
        return weights / weights.sum()


def fine(vectors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """K-means: vectors [n, d] -> (cluster of each sample [n], centroids [count', d]); empty clusters are left out."""
    from sklearn.cluster import KMeans

    if count > len(vectors):
        raise ValueError(
            f"mixture.clustering.fine: {count} clusters asked for, but the pool has only {len(vectors)} samples; "
            f"set it to about a twentieth of the pool"
        )
    labels = KMeans(count, n_init=1, max_iter=50, random_state=seed).fit_predict(vectors)
    _, labels = np.unique(labels, return_inverse=True)
    centroids = np.zeros((labels.max() + 1, vectors.shape[1]))
    np.add.at(centroids, labels, vectors)
    return labels, centroids / np.bincount(labels)[:, None]


def surviving(labels: np.ndarray, scores: Sequence[tuple[np.ndarray, float]]) -> np.ndarray:
    """Which fine clusters survive, bool [k]: the mean of every score [n] over the cluster is at least its threshold."""
    sizes = np.bincount(labels)
    keep = np.ones(len(sizes), bool)
    for values, threshold in scores:
        keep &= np.bincount(labels, values) / sizes >= threshold
    if not keep.any():
        raise ValueError("mixture.prune: no cluster passes; lower the thresholds of mixture.prune or leave a score out")
    return keep


def merge(centroids: np.ndarray, distance: float, most: int | None) -> np.ndarray:
    """Ward linkage on centroids [k, d], cut at a Euclidean distance, or to at most `most` clusters -> group [k]."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(centroids) == 1:
        return np.zeros(1, int)
    tree = linkage(centroids, "ward")
    cut = fcluster(tree, distance, "distance") if most is None else fcluster(tree, most, "maxclust")
    return cut.astype(int) - 1


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Phase 1. `fine`: clusters of k-means (the paper's number). `most`: Ward's tree is cut to at most this many (20:
    ClimbLab's); null: it is cut at the Euclidean `distance` (1.5 in the paper, a number that belongs to its embedding).
    Keep about ten proxies per merged cluster, or the predictor's arg-max is not to be relied on."""

    fine: int = 1000
    most: int | None = 20
    distance: float = 1.5

    __pydantic_config__ = ConfigDict(extra="forbid")

    def fit(
        self,
        vectors: np.ndarray,
        scores: Sequence[tuple[np.ndarray, float]],
        seed: int,
        amounts: np.ndarray | None = None,
    ) -> Clusters:
        """Vectors [n, d], pruning scores ([n], threshold), amounts [n] -> merged clusters, that of most samples first."""
        labels, centroids = fine(vectors, self.fine, seed)
        keep = surviving(labels, scores)
        group = np.full(len(keep), -1)
        group[keep] = merge(centroids[keep], self.distance, self.most)
        of_sample = group[labels]
        sizes = np.bincount(of_sample[of_sample >= 0])
        rank = np.empty(len(sizes), int)
        rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
        return Clusters.of(np.where(of_sample >= 0, rank[of_sample], -1), amounts=amounts)
