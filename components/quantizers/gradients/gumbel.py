"""A code drawn instead of chosen, with the gradient of the relaxed draw (Gumbel softmax, straight-through variant).

1. In training Gumbel noise is added to the logits (nearness of each code); the largest is the code.
2. The gradient is that of the softmax of the noisy logits at `temperature`, through the expected code.
3. In evaluation it is the nearest code.

It holds a number for each latent and each code: for codebooks of some thousand codes. Deliberately absent: annealing.
Sources: Jang et al. 2016, https://arxiv.org/abs/1611.01144; Maddison et al. 2016, https://arxiv.org/abs/1611.00712.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Assignment, GradientEstimator
from components.quantizers._codebook import straight_through


class Gumbel(GradientEstimator):
    def __init__(self, *, temperature: Annotated[float, Field(gt=0)] = 1.0) -> None:
        self.temperature = temperature

    def __call__(self, latents: Tensor, table: Tensor, assignment: Assignment, training: bool) -> tuple[Tensor, Tensor]:
        if not training:
            codes = assignment.nearest(latents, table)
            return codes, straight_through(latents, table[codes])
        logits = assignment.logits(latents, table)
        noisy = logits - torch.empty_like(logits).exponential_().log()
        codes = noisy.argmax(1)
        expected = (noisy / self.temperature).softmax(1) @ table
        return codes, straight_through(expected, table[codes])
