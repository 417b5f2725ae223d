"""Only the first m latents go on, m uniform in 1..N, the same for a batch (tail token drop, One-D-Piece).

What comes first then carries most, and any prefix of a sample's tokens can be decoded. Source: Miwa et al. 2025,
https://arxiv.org/abs/2501.10064, section 3.2."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from components.interfaces import LatentChange, Quantized, Quantizer


class UniformTail(LatentChange):
    shortens: ClassVar[bool] = True

    def __call__(self, latents: Tensor, quantized: Quantized, quantizer: Quantizer, step: int) -> Tensor:
        kept = int(torch.randint(1, latents.shape[1] + 1, ()))
        return quantized.latents[:, :kept]
