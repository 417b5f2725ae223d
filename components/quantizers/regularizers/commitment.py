"""Pulls latents to their codes (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, equation 3, third term)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import Assignment, Regularizer


class Commitment(Regularizer):
    def __init__(self, *, weight: Annotated[float, Field(ge=0)] = 0.25) -> None:
        self.weight = weight

    def __call__(self, latents: Tensor, quantized: Tensor, table: Tensor, assignment: Assignment) -> Tensor:
        return self.weight * F.mse_loss(latents, quantized.detach())
