"""What all mixtures over clusters share: the problem is made, an algorithm chooses cluster weights, both are reported.

A method is a subclass with one method, `choose`. Whatever the method, the final model is trained on its weights, on
equal weights and on natural shares, and compared on the part of the target that no search has seen.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict

from components import registry
from components.interfaces import Map, Mixture, MixtureData, MixtureResult, Modality, Monitor
from components.mixture import reporting, samples
from components.mixture.clusters import Clustering, Clusters
from components.mixture.problem import Embedder, Objective, Problem, Proxy, ProxyData, SampleScore
from components.mixture.reporting import Choice
from components.mixture.search import Search
from components.mixture.store import Store, trained
from components.registry import Spec, resolve

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Made:
    """A problem, and what its results are kept under: `name` changes with everything a proxy's score depends on,
    `final_name` with everything the final loss does. `heavy`: its proxies are worth sending elsewhere."""

    problem: Problem
    name: str
    final_name: str
    heavy: bool


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a pool and a target become a `Problem`; the defaults are for pictures. `prune`: scores whose mean over a fine
    cluster must reach their threshold. `test_share`: share of the target that is kept from the search and used for the
    report only."""

    embedding: Spec[Embedder] = field(default_factory=lambda: resolve(Embedder, {"type": "gradients"}))
    clustering: Clustering = field(default_factory=Clustering)
    prune: list[Spec[SampleScore]] = field(default_factory=lambda: [resolve(SampleScore, {"type": "contrast"})])
    proxy: Spec[Proxy] = field(default_factory=lambda: resolve(Proxy, {"type": "visual_words"}))
    objective: Spec[Objective] = field(default_factory=lambda: resolve(Objective, {"type": "mean"}))
    test_share: float = 0.5

    __pydantic_config__ = ConfigDict(extra="forbid")

    def clusters(self, data: MixtureData, seed: int) -> Clusters:
        """The pool's domains: embedded, clustered, pruned, merged."""
        pool = samples.of(data.pool)
        embedder: Embedder[Any] = _built(self.embedding, "embedding", pool.modality)
        scorers: list[SampleScore[Any]] = [
            _built(spec, f"prune.{i}", pool.modality) for i, spec in enumerate(self.prune)
        ]
        scores = [(scorer.score(pool.values), scorer.threshold) for scorer in scorers]
        return self.clustering.fit(embedder.fit_transform(pool.values, seed), scores, seed, pool.amounts)

    def build(self, data: MixtureData, clusters: Clusters, seed: int) -> Made:
        """The problem over these clusters."""
        pool, target = samples.of(data.pool), samples.of(data.target)
        proxy: Proxy[Any] = _built(self.proxy, "proxy", pool.modality)
        search, test = split(target, self.test_share, seed)
        chosen: ProxyData[Any] = ProxyData(pool.values, clusters, target.select(search), target.select(test))
        task = proxy.prepare(chosen, seed)
        name = hashlib.sha256(f"{seed} {self.proxy.dump()} {self.objective.dump()}".encode())
        name.update(pool.digest() + np.ascontiguousarray(clusters.of_sample).tobytes())
        final_name = name.copy()
        name.update(b"search" + samples.of(chosen.search).digest())
        final_name.update(b"test" + samples.of(chosen.test).digest())
        problem = Problem(clusters, task, self.objective.build())
        return Made(problem, name.hexdigest(), final_name.hexdigest(), proxy.heavy)


def _built(spec: Spec[Any], key: str, modality: Modality) -> Any:
    """The component, if it is one for this modality."""
    cls = registry.lookup(spec.kind, spec.type)
    if cls.modality != modality:
        fit = [name for name in registry.names(spec.kind) if registry.lookup(spec.kind, name).modality == modality]
        raise ValueError(
            f"mixture.problem.{key}: '{spec.type}' is for data of modality {cls.modality}, but the data set holds "
            f"{modality}; choose one for it ({', '.join(fit)})"
        )
    return spec.build()


def split(target: samples.Samples[Any], test_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of disjoint search and test parts of a target; equal samples stay together."""
    hashes = [hashlib.sha256(target.content(i)).digest() for i in range(len(target))]
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
    return np.flatnonzero(~test), np.flatnonzero(test)


class Clustered(Mixture):
    """A mixture over clusters; `problem` is how pool and target become one."""

    def __init__(self, *, problem: Setup) -> None:
        self.problem = problem

    @abstractmethod
    def choose(self, search: Search) -> Choice:
        """The cluster weights, with what was trained to find them."""

    def clusters(self, data: MixtureData, seed: int) -> Clusters:
        """What the weights are for."""
        return self.problem.clusters(data, seed)

    def fit(self, data: MixtureData, *, seed: int, workdir: Path, map: Map, monitor: Monitor) -> MixtureResult:
        made = self.problem.build(data, self.clusters(data, seed), seed)
        problem, clusters = made.problem, made.problem.clusters
        map = map if made.heavy else in_turn
        store, final = Store(workdir, made.name), Store(workdir, made.final_name)
        choice = self.choose(Search(problem.score, clusters.shares, store, seed, map, monitor, clusters.names))

        def final_losses(alphas: np.ndarray) -> list[float]:
            return trained(problem.target_loss, final, [(alpha, seed) for alpha in alphas], map)

        return reporting.report(choice, clusters, final_losses, data, seed)


def in_turn(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """A proxy of milliseconds: sending it elsewhere would cost more than training it."""
    return [function(item) for item in items]
