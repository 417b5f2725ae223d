"""Random search: the best of N random mixtures, by the score of its own proxy. The baseline without a predictor."""

from __future__ import annotations

from components.mixture.climb import PROBLEM, ROUNDS, SAMPLER
from components.mixture.clustered import Clustered, Setup
from components.mixture.dirichlet import Dirichlet
from components.mixture.reporting import Choice
from components.mixture.search import Search


class RandomSearch(Clustered):
    """`proxies` random mixtures are trained."""

    def __init__(self, *, problem: Setup = PROBLEM, sampler: Dirichlet = SAMPLER, proxies: int = sum(ROUNDS)) -> None:
        super().__init__(problem=problem)
        self.sampler, self.proxies = sampler, proxies

    def choose(self, search: Search) -> Choice:
        trials = search.random(self.sampler, self.proxies)
        best = max(trials, key=lambda trial: trial.score)  # the earliest of equal ones
        choice = Choice(best.alpha, trials)
        choice.add_random(trials)
        return choice
