"""CLIMB (arXiv:2504.13161): mixture weights for data without domain labels, by iterated search with a predictor.

1. Embed the pool, cluster it finely, drop bad clusters, merge the rest by Ward linkage (embedders, clusters.py).
2. Draw 64 mixtures around the natural shares (dirichlet.py), train a proxy on each and score it (problem.py).
3. Fit a predictor of the score (predictor.py); train 32, then 16 more mixtures picked among those it likes best.
4. The weights are the arg-max of the last predictor over fresh candidates (search.py).
Deliberately absent: classifiers distilled from a large language model for pruning (scores are plugged in), and weights
inside a cluster (samples are drawn uniformly there).
"""

from __future__ import annotations

from components.mixture.clustered import Clustered, Setup
from components.mixture.dirichlet import Dirichlet
from components.mixture.predictor import Predictor
from components.mixture.reporting import Choice
from components.mixture.search import Search

ROUNDS = (64, 32, 16)
PROBLEM, SAMPLER, PREDICTOR = Setup(), Dirichlet(), Predictor()


class Climb(Clustered):
    """`rounds`: proxies a round (paper: 4:2:1). `candidates`: how many the predictor ranks; a round of M picks among
    the best `top` (null: max(M * M, 128)). `compare`: report the baselines too, each at the same number of proxies
    (random mixtures, the best of them, one-round RegMix); they share the first round, so they cost
    `sum(rounds) - rounds[0]` proxies more."""

    def __init__(
        self,
        *,
        problem: Setup = PROBLEM,
        sampler: Dirichlet = SAMPLER,
        predictor: Predictor = PREDICTOR,
        rounds: tuple[int, ...] = ROUNDS,
        candidates: int = 100_000,
        top: int | None = None,
        compare: bool = True,
    ) -> None:
        super().__init__(problem=problem)
        if not rounds or min(rounds) < 1:
            raise ValueError(f"mixture.rounds: expected at least one round of at least one proxy, got {rounds}")
        self.sampler, self.predictor, self.rounds = sampler, predictor, tuple(rounds)
        self.candidates, self.top, self.compare = candidates, top, compare

    def choose(self, search: Search) -> Choice:
        found = search.iterate(self.rounds, self.sampler, self.predictor, self.candidates, self.top)
        choice = Choice.found(found)
        if self.compare:
            one = search.iterate((sum(self.rounds),), self.sampler, self.predictor, self.candidates, self.top)
            choice.add_random(one.trials)
            choice.rivals["regmix"] = one.alpha[None]
        return choice
