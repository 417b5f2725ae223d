"""Finite scalar quantization (Mentzer et al., 2023, https://arxiv.org/abs/2309.15505).

Mechanism: 1. a linear map to one channel a level count; 2. each channel is squashed by tanh to the width of its levels
and rounded, the gradient passing straight through; 3. the code is the mixed-radix number of the channels' levels; 4. a
linear map back. No codebook is learned, so there is nothing to collapse.
Deliberately absent: every auxiliary loss, and channels of two levels (their gradient vanishes where training starts).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import Quantized, Quantizer
from components.quantizers._codebook import full_precision, straight_through
from components.quantizers._use import CodeUse

Levels = Annotated[tuple[Annotated[int, Field(ge=3, le=256)], ...], Field(min_length=1)]


class FSQ(Quantizer):
    """`levels` values a channel; the vocabulary is their product (the paper suggests at least 5 a channel).

    >>> quantizer = FSQ(8, levels=[5, 5, 5])
    >>> int(quantizer(torch.randn(2, 4, 8)).codes.max()) < 125
    True
    """

    basis: Tensor
    counts: Tensor
    width: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, dim: int, *, levels: Levels = (8, 5, 5, 5)) -> None:
        super().__init__()
        self.codebook_sizes = (math.prod(levels),)
        self.down, self.up = nn.Linear(dim, len(levels)), nn.Linear(len(levels), dim)
        counts = torch.tensor(levels)
        self.register_buffer("counts", counts, persistent=False)
        width = (counts - 1) * (1 + 1e-3) / 2
        offset = torch.where(counts % 2 == 0, 0.5, 0.0)
        for name, value in (("width", width), ("offset", offset), ("shift", (offset / width).atanh())):
            self.register_buffer(name, value, persistent=False)
        self.use = CodeUse(self.codebook_sizes[0])
        self.register_buffer("basis", torch.cumprod(torch.cat([counts.new_ones(1), counts[:-1]]), 0), persistent=False)

    def bound(self, channels: Tensor) -> Tensor:
        """To the width of the levels; an even count is shifted by one half so that rounding gives exactly it (sec. 3)."""
        return (channels + self.shift).tanh() * self.width - self.offset

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            bounded = self.bound(self.down(latents.float()))  # [B, N, channels]
            rounded = straight_through(bounded, bounded.round())
            half = self.counts // 2
            codes = ((rounded.detach().long() + half) * self.basis).sum(-1, keepdim=True)
            if self.training:
                self.use.see(codes)
            return Quantized(self.up(rounded / half), codes)

    def decode(self, codes: Tensor) -> Tensor:
        half = self.counts // 2
        levels = codes // self.basis % self.counts
        with full_precision(codes):
            return self.up((levels - half) / half)

    def statistics(self) -> dict[str, float]:
        return self.use.statistics()

    def before_step(self, step: int) -> None:
        self.use.forget()

    def after_step(self, step: int) -> None:
        self.use.take()
