"""Only the first m latents go on, m drawn from a geometric distribution cut to 1..N (nested dropout).

Early latents are learned first and most. Source: Rippel et al. 2014, https://arxiv.org/abs/1402.0915, section 3."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import LatentChange, Quantized, Quantizer


class Nested(LatentChange):
    shortens: ClassVar[bool] = True

    def __init__(
        self, *, stop: Annotated[float, Field(gt=0, lt=1, description="chance to stop at each latent")] = 0.1
    ) -> None:
        self.stop = stop

    def __call__(self, latents: Tensor, quantized: Quantized, quantizer: Quantizer, step: int) -> Tensor:
        length = latents.shape[1]
        chances = self.stop * (1 - self.stop) ** torch.arange(length, dtype=torch.float64)
        chances[-1] = 1 - chances[:-1].sum()  # whoever has not stopped before stops at the end
        kept = 1 + int(torch.multinomial(chances, 1))
        return quantized.latents[:, :kept]
