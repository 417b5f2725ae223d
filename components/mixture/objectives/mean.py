"""Minus the mean loss over the target's samples: for a next-token proxy, minus bits per token."""

from __future__ import annotations

import numpy as np

from components.mixture.problem import Objective


class Mean(Objective):
    """
    >>> Mean().score(np.array([1.0, 3.0]))
    -2.0
    """

    def score(self, losses: np.ndarray) -> float:
        return -float(losses.mean())
