"""RegMix (arXiv:2407.01492): random mixtures, one regression, its arg-max. CLIMB with the whole budget in one round.

Deliberately absent: the mean over the best hundred predictions, which the authors' code returns; the arg-max is taken,
so that the comparison with CLIMB is about the rounds alone.
"""

from __future__ import annotations

from components.mixture.climb import PREDICTOR, PROBLEM, ROUNDS, SAMPLER
from components.mixture.clustered import Clustered, Setup
from components.mixture.dirichlet import Dirichlet
from components.mixture.predictor import Predictor
from components.mixture.reporting import Choice
from components.mixture.search import Search


class RegMix(Clustered):
    """`proxies` are trained in one round; the predictor ranks `candidates`."""

    def __init__(
        self,
        *,
        problem: Setup = PROBLEM,
        sampler: Dirichlet = SAMPLER,
        predictor: Predictor = PREDICTOR,
        proxies: int = sum(ROUNDS),
        candidates: int = 100_000,
    ) -> None:
        super().__init__(problem=problem)
        self.sampler, self.predictor, self.proxies, self.candidates = sampler, predictor, proxies, candidates

    def choose(self, search: Search) -> Choice:
        found = search.iterate((self.proxies,), self.sampler, self.predictor, self.candidates, None)
        choice = Choice.found(found)
        choice.add_random(found.trials)
        return choice
