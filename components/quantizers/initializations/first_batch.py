"""Latents of the first training batch, drawn with replacement, evenly from all processes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from components.interfaces import Initialization
from components.quantizers._codebook import picked


class FirstBatch(Initialization):
    waits: ClassVar[bool] = True

    def __call__(self, size: int, dim: int, latents: Tensor | None) -> Tensor:
        return torch.randn(size, dim) if latents is None else picked(latents, size)
