"""Natural shares: every surviving sample is drawn equally often, pruning is all that happens."""

from __future__ import annotations

from components.mixture.climb import PROBLEM
from components.mixture.clustered import Clustered, Setup
from components.mixture.reporting import Choice
from components.mixture.search import Search


class Proportional(Clustered):
    """A cluster's weight is its share of the surviving samples."""

    def __init__(self, *, problem: Setup = PROBLEM) -> None:
        super().__init__(problem=problem)

    def choose(self, search: Search) -> Choice:
        return Choice(search.shares)
