"""The gradient turned as the latent is turned onto its code (rotation trick).

1. The code is written as R z |e| / |z| with the rotation R that takes the latent's direction to the code's, R and the ratio
   of lengths held constant: R = I - 2 r r^T + 2 e^ z^^T with r = (z^ + e^) / |z^ + e^|.
2. So the gradient comes back turned by the same angle and scaled, instead of moved as by straight-through.

Where either vector is zero the gradient is that of straight-through. The value is the code to the last bit.
Deliberately absent: the variant by reflection. Source: Fifty et al. 2024, https://arxiv.org/abs/2410.06424, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import Assignment, GradientEstimator
from components.quantizers._codebook import straight_through

_LEAST = 1e-6  # length


class Rotation(GradientEstimator):
    def __call__(self, latents: Tensor, table: Tensor, assignment: Assignment, training: bool) -> tuple[Tensor, Tensor]:
        codes = assignment.nearest(latents, table)
        quantized = table[codes].detach()
        turned = rotate(latents, quantized)
        return codes, straight_through(turned, quantized)


def rotate(latents: Tensor, targets: Tensor) -> Tensor:
    """latents [M, D] turned and scaled onto targets [M, D], with the gradient of that constant linear map."""
    with torch.no_grad():
        lengths, wanted = latents.norm(dim=1, keepdim=True), targets.norm(dim=1, keepdim=True)
        fine = (lengths > _LEAST) & (wanted > _LEAST)
        direction, target = F.normalize(latents, dim=1), F.normalize(targets, dim=1)
        middle = F.normalize(direction + target, dim=1)
        scale = torch.where(fine, wanted / lengths.clamp(min=_LEAST), 1.0)
    turned = latents - 2 * (latents * middle).sum(1, keepdim=True) * middle
    turned = turned + 2 * (latents * direction).sum(1, keepdim=True) * target
    return torch.where(fine, scale * turned, latents)
