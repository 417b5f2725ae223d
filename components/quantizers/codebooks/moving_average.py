"""A codebook that follows its latents: each code moves to the average of the latents it is assigned to, without a gradient.

1. The sums of latents and their numbers are averaged exponentially; a code is their ratio.
2. Numbers are Laplace-smoothed, so that a code that nothing uses does not explode.
Deliberately absent: a gradient (`learned` has one). Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937,
appendix A.1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Codebook, Initialization
from components.registry import Spec, resolve
from components.training import distributed

FIRST_BATCH = resolve(Initialization, {"type": "first_batch"})


class MovingAverage(Codebook):
    codes: Tensor  # [K, D]
    sums: Tensor  # [K, D] moving average of the sum of a code's latents in a batch
    filled: Tensor  # [] bool

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        initialization: Spec[Initialization] = FIRST_BATCH,
    ) -> None:
        super().__init__()
        self.decay, self.start = decay, initialization.build()
        first = self.start(size, dim, None)
        self.register_buffer("codes", first)
        self.register_buffer("sums", torch.zeros(size, dim) if self.start.waits else first.clone())
        self.register_buffer("filled", torch.tensor(not self.start.waits))

    def table(self) -> Tensor:
        return self.codes

    @torch.no_grad()
    def fill(self, latents: Tensor) -> None:
        if bool(self.filled) or not len(latents):
            return
        size, dim = self.codes.shape
        first = self.start(size, dim, latents)
        if bool(torch.isfinite(first).all()):
            self.codes.copy_(first)
            self.sums.copy_(first)
            self.filled.fill_(True)

    @torch.no_grad()
    def update(self, latents: Tensor, codes: Tensor, counts: Tensor) -> None:
        sums = distributed.all_sum(torch.zeros_like(self.sums).index_add_(0, codes, latents))
        if not bool(torch.isfinite(sums).all()):
            return
        self.sums.lerp_(sums, 1 - self.decay)
        total, size = counts.sum(), len(counts)
        smoothed = (counts + 1e-5) / (total + size * 1e-5) * total  # as in the paper's code
        self.codes.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def replace(self, which: Tensor, latents: Tensor, count: Tensor) -> None:
        self.codes[which] = latents
        self.sums[which] = latents * count
