"""What a mixture is searched for: the vocabulary of the inner problem, each part pluggable by name in the recipe.

`Proxy` trains something small on a mixture and gives a loss for every target sample, `Objective` makes one number of
these losses, `SampleScore` rates pool samples so that bad clusters can be pruned. `Problem` puts them together: all a
search ever calls is `problem.score(alpha, seed)`; only the final report calls `problem.target_loss(alpha, seed)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from components.mixture.clusters import Clusters


@dataclass(frozen=True)
class ProxyData:
    """Images uint8 [n, C, H, W]: the pool with its clusters, and two disjoint parts of the target."""

    pool: np.ndarray
    clusters: Clusters
    search: np.ndarray
    test: np.ndarray


class ProxyTask(ABC):
    """A proxy made ready for one data set. Picklable: it is sent to the workers that train."""

    @abstractmethod
    def search_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        """Trains a proxy on the mixture alpha [K]; loss of every search sample of the target, [m]."""

    @abstractmethod
    def test_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        """Trains the final, larger model on the mixture alpha [K]; loss of every test sample of the target, [m']."""


class Proxy(ABC):
    """A kind of proxy. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture.proxies"

    @abstractmethod
    def prepare(self, data: ProxyData, seed: int) -> ProxyTask: ...


class Objective(ABC):
    """Losses of the target's samples -> score, higher is better. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture.objectives"

    @abstractmethod
    def score(self, losses: np.ndarray) -> float: ...


class SampleScore(ABC):
    """Rates samples for pruning; a cluster survives when its mean is at least `threshold`.

    Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture.scores"
    threshold: float

    @abstractmethod
    def score(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, C, H, W] -> [n]"""


@dataclass(frozen=True)
class Problem:
    """min over alpha in the simplex of the objective of what is trained on alpha."""

    clusters: Clusters
    task: ProxyTask
    objective: Objective

    def score(self, alpha: np.ndarray, seed: int) -> float:
        """Higher is better: the objective of a proxy on the search part."""
        return self.objective.score(self.task.search_losses(alpha, seed))

    def target_loss(self, alpha: np.ndarray, seed: int) -> float:
        """Lower is better: minus the objective of the final model on the test part."""
        return -self.objective.score(self.task.test_losses(alpha, seed))
