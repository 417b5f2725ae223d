"""Product quantization: a latent is cut into M pieces, each with a codebook of its own (Jegou et al. 2011).

1. The D channels are cut into `groups` runs of D / M; each is quantized by a `vq`, the codes are concatenated.
2. M codebooks of K codes are K^M cells, and the error is the sum of the pieces' errors.

Deliberately absent: a rotation before the cut (`rotated_product` has one). Source: Jegou et al. 2011, Product quantization
for nearest neighbor search, IEEE TPAMI 33(1), section II.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import Assignment, Codebook, GradientEstimator, Quantized, Regularizer, Revival
from components.quantizers._several import OfVQs
from components.quantizers.vq import COMMITMENT, EUCLIDEAN, MOVING_AVERAGE, REPLACE_UNUSED, STRAIGHT_THROUGH
from components.registry import ComponentError, Spec


class Product(OfVQs):
    """`groups` codes a latent; `groups` divides the latent's width.

    >>> Product(6, groups=2, codebook_size=16)(torch.randn(2, 9, 6)).codes.shape
    torch.Size([2, 9, 2])
    """

    def __init__(
        self,
        dim: int,
        *,
        groups: Annotated[int, Field(ge=1)] = 2,
        codebook_size: Annotated[int, Field(ge=2)] = 256,
        codebook: Spec[Codebook] = MOVING_AVERAGE,
        assignment: Spec[Assignment] = EUCLIDEAN,
        gradient: Spec[GradientEstimator] = STRAIGHT_THROUGH,
        regularizers: list[Spec[Regularizer]] = COMMITMENT,
        revival: Spec[Revival] | None = REPLACE_UNUSED,
    ) -> None:
        super().__init__()
        if dim % groups:
            raise ComponentError(f"must divide the width of a latent ({dim}), got {groups}", ("groups",))
        self.codebook_sizes = (codebook_size,) * groups
        parts = self.make(groups, dim // groups, codebook_size, codebook, assignment, gradient, regularizers, revival)
        self.parts, self.groups = parts, nn.ModuleList(parts)

    def forward(self, latents: Tensor) -> Quantized:
        pieces = latents.chunk(len(self.parts), -1)
        results = [part(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        losses = {
            f"{name}_{group}": loss / len(results) for group, r in enumerate(results) for name, loss in r.losses.items()
        }
        return Quantized(torch.cat([r.latents for r in results], -1), torch.cat([r.codes for r in results], -1), losses)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.cat([part.decode(code) for part, code in zip(self.parts, codes.split(1, -1), strict=True)], -1)
