"""Mixture weights -> score, by gradient-boosted trees (LightGBM), with the settings of CLIMB.

Scores are standardized and multiplied by ten before the fit: the L1 term acts on gradient sums of a leaf, so with
scores of a small range no leaf would ever leave zero and the predictor would be constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict

Predict = Callable[[np.ndarray], np.ndarray]  # mixtures [m, K] -> scores [m]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A tenth of the pairs (`validation`) decides when to stop: after `patience` trees without gain."""

    learning_rate: float = 0.01
    trees: int = 1000
    depth: int = 4
    leaf: int = 5
    l1: float = 1.0
    l2: float = 1.0
    validation: float = 0.1
    patience: int = 20

    __pydantic_config__ = ConfigDict(extra="forbid")

    def fit(self, alphas: np.ndarray, scores: np.ndarray, seed: int) -> Predict:
        """Mixtures [m, K] and their scores [m] -> a function that predicts scores."""
        import lightgbm

        mean, scale = scores.mean(), max(float(scores.std()), 1e-12) / 10
        order = np.random.default_rng(seed).permutation(len(scores))
        held = order[: max(1, round(self.validation * len(scores)))]
        train = order[len(held) :]
        settings = {
            "objective": "regression", "learning_rate": self.learning_rate, "max_depth": self.depth,
            "num_leaves": 2**self.depth - 1, "min_data_in_leaf": self.leaf, "lambda_l1": self.l1, "lambda_l2": self.l2,
            "seed": seed, "num_threads": 1, "deterministic": True, "force_col_wise": True, "verbose": -1,
        }  # fmt: skip
        target = (scores - mean) / scale
        data = lightgbm.Dataset(alphas[train], target[train])
        model = lightgbm.train(
            settings, data, self.trees, valid_sets=[data.create_valid(alphas[held], target[held])],
            callbacks=[lightgbm.early_stopping(self.patience, verbose=False)],
        )  # fmt: skip
        return lambda mixtures: np.asarray(model.predict(mixtures, num_threads=1)) * scale + mean
