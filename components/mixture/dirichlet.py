"""Random mixtures around the natural shares (CLIMB, round 1; the recipe is RegMix's, arXiv:2407.01492).

Prior = shares^temperature, renormalized; concentration = prior times a strength that is drawn log-uniformly from a few
values, mostly below one, so that most mixtures are sparse. Weights below `minimum` become zero, the rest is
renormalized, and a mixture is refused when a weight exceeds `cap` times its natural share (a cluster would be repeated
too often) or when it has been seen before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict

CHUNK = 4096  # drawn at a time, whatever is asked for: the first 64 of 112 are the same as 64 alone


def key(alpha: np.ndarray) -> bytes:
    """Two mixtures with the same key count as one: equal to a millionth."""
    return keys(alpha[None])[0]


def keys(alphas: np.ndarray) -> list[bytes]:
    """The `key` of every row of [m, K]."""
    return [row.tobytes() for row in np.round(alphas * 1e6).astype(np.int32)]


@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """`strengths` log-spaced values from `weakest` to `strongest`; see the top of the file for the others."""

    temperature: float = 0.5
    strengths: int = 15
    weakest: float = 0.1
    strongest: float = 5.0
    cap: float = 15.0
    minimum: float = 2e-4

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if self.cap < 1:
            raise ValueError(f"mixture.sampler.cap: must be at least 1 (natural shares), got {self.cap}")

    def draw(
        self, shares: np.ndarray, count: int, rng: np.random.Generator, seen: Collection[bytes] = frozenset()
    ) -> np.ndarray:
        """`count` different mixtures [count, K], none of which is in `seen` (of `key`s)."""
        prior = shares**self.temperature
        prior = prior / prior.sum()
        values = np.geomspace(self.weakest, self.strongest, self.strengths)
        known, drawn = set(seen), 0
        found: list[np.ndarray] = []
        while len(found) < count:
            concentration = prior * rng.choice(values, CHUNK)[:, None]
            lawful = self._lawful(_dirichlet(concentration, rng), shares)
            for alpha, name in zip(lawful, keys(lawful), strict=True):
                if len(found) < count and name not in known:
                    known.add(name)
                    found.append(alpha)
            drawn += CHUNK
            if len(found) < count and drawn > 200 * CHUNK and len(found) < drawn / 1000:
                raise ValueError(
                    f"mixture.sampler: of {drawn} mixtures only {len(found)} are new and obey cap {self.cap}; "
                    f"raise the cap or the strengths, or merge to clusters of more equal size"
                )
        return np.stack(found)

    def _lawful(self, alphas: np.ndarray, shares: np.ndarray) -> np.ndarray:
        alphas = np.where(alphas < self.minimum, 0.0, alphas)
        alphas = alphas / alphas.sum(axis=1, keepdims=True)
        return alphas[(alphas <= self.cap * shares).all(axis=1)]


def _dirichlet(concentration: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[m, K] -> draws [m, K]. In logarithms (Gamma(a) = Gamma(a + 1) * U^(1/a)): at small concentrations every gamma
    variable of a row may be too small for a float."""
    logs = np.log(rng.standard_gamma(concentration + 1)) + np.log1p(-rng.random(concentration.shape)) / concentration
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
