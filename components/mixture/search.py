"""The bilevel search (CLIMB, phase 2): coordinate descent between sampling mixtures and refitting a predictor.

Round 1 draws mixtures from the Dirichlet sampler. Every later round draws many candidates, lets the predictor that was
fitted on ALL pairs so far rank them, and trains a random pick of its best: exploitation by the ranking, exploration by
the pick. The answer is the arg-max of the last predictor over fresh candidates. With one round this is RegMix.
All randomness comes from (seed, round), never from what was trained before or where, so a resumed search is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.interfaces import Map, Monitor
from components.mixture.dirichlet import Dirichlet, key
from components.mixture.predictor import Predict, Predictor
from components.mixture.store import Run, Score, Store, trained

FRESH = 1_000_003  # the stream of the final candidates, apart from the stream of any round


@dataclass(frozen=True)
class Trial:
    """One trained proxy. `predicted` is what the predictor said before it was trained (None in round 1)."""

    round: int
    alpha: np.ndarray
    seed: int
    score: float
    predicted: float | None


@dataclass(frozen=True)
class Found:
    """`fitted_on`: rows of each fit of the predictor; `predicted`: its score for the answer."""

    alpha: np.ndarray
    trials: list[Trial]
    fitted_on: list[int]
    predicted: float


@dataclass(frozen=True)
class Search:
    """`score(alpha, seed)` trains one proxy; `shares` [K] are natural shares; finished proxies are in `store`. `names` [K]
    are for weights that a person gives; no search reads them."""

    score: Score
    shares: np.ndarray
    store: Store
    seed: int
    map: Map
    monitor: Monitor
    names: tuple[str, ...] = ()

    def random(self, sampler: Dirichlet, count: int, total: int | None = None) -> list[Trial]:
        """`count` mixtures of the sampler, trained: the first round of `total`, or a search without any predictor."""
        alphas = sampler.draw(self.shares, count, np.random.default_rng((self.seed, 0)))
        return self._train(alphas, None, round=0, before=0, total=total or count)

    def iterate(
        self, rounds: Sequence[int], sampler: Dirichlet, predictor: Predictor, candidates: int, top: int | None
    ) -> Found:
        """Trains `rounds[0]`, `rounds[1]`, ... mixtures. A pick is among the best `top` of the candidates; by default
        max(M * M, 128) in a round of M (the authors' recipe)."""
        total, fitted_on = sum(rounds), []
        trials: list[Trial] = []
        predict: Predict | None = None
        for index, count in enumerate(rounds):
            if predict is None:
                trials = self.random(sampler, count, total)
            else:
                rng = np.random.default_rng((self.seed, index))
                pool = sampler.draw(self.shares, candidates, rng, {key(t.alpha) for t in trials})
                expected = predict(pool)
                best = np.argsort(-expected, kind="stable")[: top or max(count * count, 128)]
                pick = rng.choice(best, count, replace=False)
                trials += self._train(pool[pick], expected[pick], round=index, before=len(trials), total=total)
            predict = predictor.fit(np.stack([t.alpha for t in trials]), np.array([t.score for t in trials]), self.seed)
            fitted_on.append(len(trials))
        assert predict is not None
        pool = sampler.draw(self.shares, candidates, np.random.default_rng((self.seed, FRESH)))
        expected = predict(pool)
        ties = pool[expected == expected.max()]  # trees are constant over boxes: of equal ones take the middle
        answer = ties[np.argmin(((ties - ties.mean(axis=0)) ** 2).sum(axis=1))]
        return Found(answer, trials, fitted_on, float(expected.max()))

    def _train(
        self, alphas: np.ndarray, predicted: np.ndarray | None, *, round: int, before: int, total: int
    ) -> list[Trial]:
        runs: list[Run] = [(alpha, self.seed * 100_000 + before + i) for i, alpha in enumerate(alphas)]
        done = trained(self.score, self.store, runs, self.map)
        self.monitor.progress(before + len(runs), total, f"proxies, round {round + 1}")
        self.monitor.log(round, {"score_mean": float(np.mean(done)), "score_best": float(np.max(done))})
        guesses: list[Any] = [None] * len(runs) if predicted is None else predicted.tolist()
        return [Trial(round, *run, score, guess) for run, score, guess in zip(runs, done, guesses, strict=True)]
