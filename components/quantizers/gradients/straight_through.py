"""The gradient of the identity (Bengio et al. 2013, https://arxiv.org/abs/1308.3432)."""

from __future__ import annotations

from torch import Tensor

from components.interfaces import Assignment, GradientEstimator
from components.quantizers._codebook import straight_through


class StraightThrough(GradientEstimator):
    def __call__(self, latents: Tensor, table: Tensor, assignment: Assignment, training: bool) -> tuple[Tensor, Tensor]:
        codes = assignment.nearest(latents, table)
        return codes, straight_through(latents, table[codes])
