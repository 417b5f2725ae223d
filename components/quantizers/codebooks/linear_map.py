"""A frozen random codebook seen through one learned linear map, so that every code moves with every other (SimVQ).

1. Codes are the rows of a random matrix that is never trained, times a learned matrix W [D, D].
2. The loss |sg(z) - e W|^2 moves W, hence all codes at once: none is left behind.

Deliberately absent: training the matrix of codes as well. Revival is refused: there is nothing to write a latent into.
Source: Zhu et al. 2024, SimVQ, https://arxiv.org/abs/2411.02038, section 4.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Codebook


class LinearMap(Codebook):
    raw: Tensor  # [K, D]

    def __init__(self, size: int, dim: int, *, weight: Annotated[float, Field(ge=0)] = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("raw", torch.randn(size, dim) * dim**-0.5)
        self.map = nn.Linear(dim, dim, bias=False)

    def table(self) -> Tensor:
        return self.map(self.raw)

    def losses(self, latents: Tensor, quantized: Tensor) -> dict[str, Tensor]:
        return {"codebook": self.weight * F.mse_loss(quantized, latents.detach())}

    def fill(self, latents: Tensor) -> None:
        """It starts at random."""

    def update(self, latents: Tensor, codes: Tensor, counts: Tensor) -> None:
        """The optimizer moves the map."""

    def replace(self, which: Tensor, latents: Tensor, count: Tensor) -> None:
        raise ValueError("codes of a linear_map cannot be revived one by one; leave out quantizer.revival")
