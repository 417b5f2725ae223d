"""What a mixture is searched for: the vocabulary of the inner problem, each part pluggable by name in the recipe.

`Embedder` makes vectors to cluster, `SampleScore` rates pool samples so that bad clusters can be pruned, `Proxy` trains
something small on a mixture and gives a loss for every target sample, `Objective` makes one number of these losses.
`Problem` puts them together: all a search ever calls is `problem.score(alpha, seed)`; only the final report calls
`problem.target_loss(alpha, seed)`. The first three know their modality: pictures come as uint8 [n, C, H, W], texts as lists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic

import numpy as np

from components.interfaces import Modality
from components.mixture.clusters import Clusters
from components.mixture.samples import S


class Embedder(ABC, Generic[S]):
    """Samples -> vectors, fitted in the run or frozen (a sentence encoder). Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture.embedders"
    modality: ClassVar[Modality]

    @abstractmethod
    def fit_transform(self, samples: S, seed: int) -> np.ndarray:
        """n samples -> float [n, d], rows of unit length; the same for the same samples and seed."""


class SampleScore(ABC, Generic[S]):
    """Rates samples for pruning; a cluster survives when its mean is at least `threshold`.

    Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture.scores"
    modality: ClassVar[Modality]
    threshold: float

    @abstractmethod
    def score(self, samples: S) -> np.ndarray:
        """n samples -> [n]"""


@dataclass(frozen=True)
class ProxyData(Generic[S]):
    """The pool with its clusters, and two disjoint parts of the target."""

    pool: S
    clusters: Clusters
    search: S
    test: S


class ProxyTask(ABC):
    """A proxy made ready for one data set. Picklable: it is sent to the workers that train."""

    @abstractmethod
    def search_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        """Trains a proxy on the mixture alpha [K]; loss of every search sample of the target, [m]."""

    @abstractmethod
    def test_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        """Trains the final, larger model on the mixture alpha [K]; loss of every test sample of the target, [m']."""


class Proxy(ABC, Generic[S]):
    """A kind of proxy. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture.proxies"
    modality: ClassVar[Modality]
    heavy: ClassVar[bool] = False  # whether training one takes long enough to be sent to another process

    @abstractmethod
    def prepare(self, data: ProxyData[S], seed: int) -> ProxyTask: ...


class Objective(ABC):
    """Losses of the target's samples -> score, higher is better. Constructor: `(*, config)`."""

    family: ClassVar[str] = "components.mixture.objectives"

    @abstractmethod
    def score(self, losses: np.ndarray) -> float: ...


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
