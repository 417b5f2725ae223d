"""Codes that point in different directions: |C C^T - I|^2 / K^2 of the normalized codes (of at most `most`, drawn anew).

Source: Shin et al. 2023, https://arxiv.org/abs/2112.00384, equation 2."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import Assignment, Regularizer


class Orthogonality(Regularizer):
    def __init__(
        self, *, weight: Annotated[float, Field(ge=0)] = 1.0, most: Annotated[int, Field(ge=2)] = 1024
    ) -> None:
        self.weight, self.most = weight, most

    def __call__(self, latents: Tensor, quantized: Tensor, table: Tensor, assignment: Assignment) -> Tensor:
        if len(table) > self.most:
            table = table[torch.randperm(len(table), device=table.device)[: self.most]]
        codes = F.normalize(table, dim=1)
        cosines = codes @ codes.T
        return self.weight * (cosines.square().sum() / len(codes) ** 2 - 1 / len(codes))
