"""What all mixtures over clusters share: the problem is made, an algorithm chooses cluster weights, both are reported.

A method is a subclass with one method, `choose`. Whatever the method, the final model is trained on its weights, on
equal weights and on natural shares, and compared on the part of the target that no search has seen.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import ConfigDict

from components.interfaces import Map, Mixture, MixtureData, MixtureResult, Monitor
from components.mixture import reporting
from components.mixture.clusters import Clustering
from components.mixture.embedding import Embedding
from components.mixture.problem import Objective, Problem, Proxy, ProxyData, SampleScore
from components.mixture.reporting import Choice
from components.mixture.search import Search
from components.mixture.store import Store
from components.registry import Spec, resolve


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a pool and a target become a `Problem`. `prune`: scores whose mean over a fine cluster must reach their
    threshold. `test_share`: share of the target that is kept from the search and used for the report only."""

    embedding: Embedding = field(default_factory=Embedding)
    clustering: Clustering = field(default_factory=Clustering)
    prune: list[Spec[SampleScore]] = field(default_factory=lambda: [resolve(SampleScore, {"type": "contrast"})])
    proxy: Spec[Proxy] = field(default_factory=lambda: resolve(Proxy, {"type": "visual_words"}))
    objective: Spec[Objective] = field(default_factory=lambda: resolve(Objective, {"type": "mean"}))
    test_share: float = 0.5

    __pydantic_config__ = ConfigDict(extra="forbid")

    def build(self, data: MixtureData, seed: int) -> tuple[Problem, str]:
        """The problem, and a name that changes with everything a proxy's score depends on."""
        search, test = split(data.target, self.test_share, seed)
        scorers = [spec.build() for spec in self.prune]
        scores = [(scorer.score(data.pool), scorer.threshold) for scorer in scorers]
        clusters = self.clustering.fit(self.embedding.fit_transform(data.pool), scores, seed)
        task = self.proxy.build().prepare(ProxyData(data.pool, clusters, search, test), seed)
        name = hashlib.sha256(f"{seed} {self.proxy.dump()} {self.objective.dump()}".encode())
        for array in (data.pool, clusters.of_sample, search):
            name.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return Problem(clusters, task, self.objective.build()), name.hexdigest()


def split(target: np.ndarray, test_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Target images [m, C, H, W] -> disjoint search and test parts; equal pictures stay together."""
    hashes = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in target]
    distinct = sorted(set(hashes))
    order = np.random.default_rng(seed).permutation(len(distinct))
    count = round(test_share * len(distinct))
    if not 0 < count < len(distinct):
        raise ValueError(
            f"mixture.problem.test_share: {test_share} of {len(distinct)} different target samples leaves no search or "
            f"no test part; give the target more samples, or a share nearer to 0.5"
        )
    chosen = {distinct[i] for i in order[:count]}
    test = np.array([h in chosen for h in hashes])
    return target[~test], target[test]


class Clustered(Mixture):
    """A mixture over clusters; `problem` is how pool and target become one."""

    def __init__(self, *, problem: Setup) -> None:
        self.problem = problem

    @abstractmethod
    def choose(self, search: Search) -> Choice:
        """The cluster weights, with what was trained to find them."""

    def fit(self, data: MixtureData, *, seed: int, workdir: Path, map: Map, monitor: Monitor) -> MixtureResult:
        problem, name = self.problem.build(data, seed)
        search = Search(problem.score, problem.clusters.shares, Store(workdir, name), seed, map, monitor)
        return reporting.report(self.choose(search), problem, data, seed)
