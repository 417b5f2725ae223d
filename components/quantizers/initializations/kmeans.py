"""k-means over the latents of the first training batch (of all processes), from latents drawn among them.

A mean that no latent chooses stays where it is. Source: SoundStream, Zeghidour et al. 2021,
https://arxiv.org/abs/2107.03312, section III-C."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Initialization
from components.quantizers._codebook import nearest, picked
from components.training import distributed


class KMeans(Initialization):
    waits: ClassVar[bool] = True

    def __init__(self, *, rounds: Annotated[int, Field(ge=1)] = 10) -> None:
        self.rounds = rounds

    def __call__(self, size: int, dim: int, latents: Tensor | None) -> Tensor:
        if latents is None:
            return torch.randn(size, dim)
        means = picked(latents, size)
        for _ in range(self.rounds):
            codes = nearest(latents, means)
            counts = distributed.all_sum(torch.bincount(codes, minlength=size).float())
            sums = distributed.all_sum(torch.zeros_like(means).index_add_(0, codes, latents))
            means = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], means)
        return means
