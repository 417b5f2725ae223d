"""Standard normal codes, scaled."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Initialization


class Normal(Initialization):
    waits: ClassVar[bool] = False

    def __init__(self, *, std: Annotated[float, Field(gt=0)] = 1.0) -> None:
        self.std = std

    def __call__(self, size: int, dim: int, latents: Tensor | None) -> Tensor:
        return self.std * torch.randn(size, dim)
