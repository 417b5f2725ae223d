"""Product quantization after a learned rotation of the channels (optimized product quantization, OPQ).

1. A latent is rotated, z' = z R with R [D, D] orthogonal; z' is quantized as `product` does it: pieces, each a codebook.
2. What comes out is rotated back, so the error is the one in the rotated space: the sum of the pieces' errors.
3. After each step R becomes the orthogonal matrix that minimizes |z R - q'|^2 over what was seen lately, q' being the
   quantized z': with S the moving average of z^T q' and S = U diag(s) V^T it is U V^T (orthogonal Procrustes).
4. Codebooks follow their latents meanwhile, so that both are fitted in turns. R starts as the identity: as `product`.

Directions that S says nothing of stay as they are. The fit takes about D^3 operations a step. Deliberately absent: the
closed form for normal latents (the paper's parametric solution) and a rotation learned by gradient. Source: Ge et al.
2013, Optimized product quantization for approximate nearest neighbor search, CVPR, the non-parametric solution.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Assignment, Codebook, GradientEstimator, Quantized, Regularizer, Revival
from components.quantizers._codebook import full_precision
from components.quantizers.product import Product
from components.quantizers.vq import COMMITMENT, EUCLIDEAN, MOVING_AVERAGE, REPLACE_UNUSED, STRAIGHT_THROUGH
from components.registry import Spec
from components.training import distributed

_RIDGE = 1e-6  # of the norm of S: holds R still where S has nothing to say


class RotatedProduct(Product):
    """`groups` codes a latent; `groups` divides the latent's width.

    >>> RotatedProduct(6, groups=2, codebook_size=16)(torch.randn(2, 9, 6)).codes.shape
    torch.Size([2, 9, 2])
    """

    rotation: Tensor  # [D, D] orthogonal
    cross: Tensor  # [D, D] moving average of the sum of z^T q' of a step

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
        rotation_decay: Annotated[
            float, Field(ge=0, lt=1, description="of the average the rotation is fitted to")
        ] = 0.99,
    ) -> None:
        super().__init__(
            dim,
            groups=groups,
            codebook_size=codebook_size,
            codebook=codebook,
            assignment=assignment,
            gradient=gradient,
            regularizers=regularizers,
            revival=revival,
        )
        self.rotation_decay = rotation_decay
        self.register_buffer("rotation", torch.eye(dim))
        self.register_buffer("cross", torch.zeros(dim, dim))
        self._seen: list[Tensor] = []  # z^T q' [D, D] of the forwards of a step

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            latents = latents.float()
            result = super().forward(latents @ self.rotation)
            if self.training:
                self._seen.append(latents.detach().flatten(0, 1).T @ result.latents.detach().flatten(0, 1))
            return Quantized(result.latents @ self.rotation.T, result.codes, result.losses)

    def decode(self, codes: Tensor) -> Tensor:
        with full_precision(codes):
            return super().decode(codes) @ self.rotation.T

    def before_step(self, step: int) -> None:
        self._seen = []
        super().before_step(step)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The codebooks follow, then the rotation is fitted to what the codes were in this step and lately."""
        super().after_step(step)
        if not self._seen:
            return
        cross, self._seen = distributed.all_sum(torch.stack(self._seen).sum(0)), []
        if not bool(torch.isfinite(cross).all()) or not bool(cross.any()):
            return
        self.cross.lerp_(cross, 1 - self.rotation_decay)
        self.rotation.copy_(procrustes(self.cross, self.rotation))


def procrustes(cross: Tensor, current: Tensor) -> Tensor:
    """The orthogonal R that maximizes trace(R^T S), S = `cross` [D, D]; of several the nearest to `current` [D, D]."""
    wide, now = cross.double(), current.double()
    left, _, right = torch.linalg.svd(wide + _RIDGE * wide.norm() * now)
    return (left @ right).to(current.dtype)
