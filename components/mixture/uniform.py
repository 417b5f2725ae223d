"""Equal weight for every cluster: a sample of a small cluster is drawn more often than one of a large cluster."""

from __future__ import annotations

import numpy as np

from components.mixture.climb import PROBLEM
from components.mixture.clustered import Clustered, Setup
from components.mixture.reporting import Choice
from components.mixture.search import Search


class Uniform(Clustered):
    """Uniform over merged clusters (not over samples: that is `proportional`)."""

    def __init__(self, *, problem: Setup = PROBLEM) -> None:
        super().__init__(problem=problem)

    def choose(self, search: Search) -> Choice:
        return Choice(np.full(len(search.shares), 1.0 / len(search.shares)))
