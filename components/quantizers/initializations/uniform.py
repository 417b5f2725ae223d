"""Codes uniform in [-1/K, 1/K], as VQGAN starts them (Esser et al. 2021, https://arxiv.org/abs/2012.09841, code)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from components.interfaces import Initialization


class Uniform(Initialization):
    waits: ClassVar[bool] = False

    def __call__(self, size: int, dim: int, latents: Tensor | None) -> Tensor:
        return (2 * torch.rand(size, dim) - 1) / size
