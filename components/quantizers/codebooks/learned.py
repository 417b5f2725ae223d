"""A codebook learned by gradient: codes are pulled to the latents they are assigned to.

The loss |sg(z) - e|^2 moves the codes that were chosen; with a gradient estimator that reaches all codes (Gumbel, index
backpropagation) others move as well. Revival writes over a row; its optimizer state stays. Source: van den Oord et al.
2017, https://arxiv.org/abs/1711.00937, equation 3, second term.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Codebook, Initialization
from components.registry import Spec, resolve

NORMAL = resolve(Initialization, {"type": "normal"})


class Learned(Codebook):
    filled: Tensor  # [] bool

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        weight: Annotated[float, Field(ge=0, description="of the loss that pulls codes to latents")] = 1.0,
        initialization: Spec[Initialization] = NORMAL,
    ) -> None:
        super().__init__()
        self.weight, self.start = weight, initialization.build()
        self.codes = nn.Parameter(self.start(size, dim, None))
        self.register_buffer("filled", torch.tensor(not self.start.waits))

    def table(self) -> Tensor:
        return self.codes

    def losses(self, latents: Tensor, quantized: Tensor) -> dict[str, Tensor]:
        return {"codebook": self.weight * F.mse_loss(quantized, latents.detach())} if self.weight else {}

    @torch.no_grad()
    def fill(self, latents: Tensor) -> None:
        if bool(self.filled) or not len(latents):
            return
        size, dim = self.codes.shape
        first = self.start(size, dim, latents)
        if bool(torch.isfinite(first).all()):
            self.codes.copy_(first)
            self.filled.fill_(True)

    def update(self, latents: Tensor, codes: Tensor, counts: Tensor) -> None:
        """The optimizer moves the codes."""

    @torch.no_grad()
    def replace(self, which: Tensor, latents: Tensor, count: Tensor) -> None:
        self.codes[which] = latents
