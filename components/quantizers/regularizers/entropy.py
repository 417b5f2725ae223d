"""Sure about each latent, undecided over all: mean entropy of p(code | latent) minus entropy of the mean p.

p is the softmax of the logits (nearness of each code) divided by `temperature`. It holds a number for each latent and each
code. Source: Yu et al. 2023, MAGVIT-v2, https://arxiv.org/abs/2310.05737, equation 5."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from components.interfaces import Assignment, Regularizer
from components.quantizers._codebook import entropy_loss


class Entropy(Regularizer):
    def __init__(
        self, *, weight: Annotated[float, Field(ge=0)] = 0.1, temperature: Annotated[float, Field(gt=0)] = 0.01
    ) -> None:
        self.weight, self.temperature = weight, temperature

    def __call__(self, latents: Tensor, quantized: Tensor, table: Tensor, assignment: Assignment) -> Tensor:
        return self.weight * entropy_loss(assignment.logits(latents, table) / self.temperature)
