"""Mean absolute error of pixels in [-1, 1]."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import ReconstructionLoss


class Absolute(ReconstructionLoss):
    def __init__(self, *, weight: Annotated[float, Field(ge=0)] = 1.0) -> None:
        self.weight = weight

    def __call__(self, drawn: Tensor, images: Tensor) -> Tensor:
        return self.weight * F.l1_loss(drawn, images)
