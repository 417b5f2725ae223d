"""Binary spherical quantization: signs on the unit sphere (BSQ).

1. A linear map to `bits` channels, normalized: u = v / |v|. The code is the signs, its vector sign(u) / sqrt(bits), which
   lies on the sphere too, so the error is bounded: |u - u_q|^2 <= 2 - 2 / sqrt(bits).
2. The entropy loss is a sum over bits, which on the sphere are independent given the latent: each is set with probability
   sigmoid(4 u_i / (sqrt(bits) * temperature)), the softmax of the distances to its two values.
3. Bits come in codes of `per_code`, so that a position of 36 bits can be four codes of 9. A linear map back.

Deliberately absent: a commitment loss (the error is bounded). Source: Zhao et al. 2024, https://arxiv.org/abs/2406.07548,
section 4.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Quantized
from components.quantizers._bits import sign, to_codes, to_signs
from components.quantizers._codebook import full_precision, straight_through
from components.quantizers._several import OfUses
from components.registry import ComponentError


class BSQ(OfUses):
    """`bits` / `per_code` codes a latent.

    >>> BSQ(8, bits=18, per_code=9)(torch.randn(2, 9, 8)).codes.shape
    torch.Size([2, 9, 2])
    """

    def __init__(
        self,
        dim: int,
        *,
        bits: Annotated[int, Field(ge=1)] = 18,
        per_code: Annotated[int, Field(ge=1, le=18)] = 9,
        entropy_weight: Annotated[float, Field(ge=0)] = 0.1,
        temperature: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__()
        if bits % per_code:
            raise ComponentError(f"must divide bits ({bits}), got {per_code}", ("per_code",))
        self.bits, self.per_code, self.temperature = bits, per_code, temperature
        self.entropy_weight = entropy_weight
        self.count([2**per_code] * (bits // per_code))
        self.down, self.up = nn.Linear(dim, bits), nn.Linear(bits, dim)

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            sphere = F.normalize(self.down(latents.float()), dim=-1)  # [B, N, bits]
            signs = sign(sphere)
            codes = to_codes(signs.unflatten(-1, (-1, self.per_code)))
            losses = {"entropy": self.entropy_weight * self.entropy(sphere)} if sphere.numel() else {}
            if self.training:
                for use, group in zip(self.uses, codes.unbind(-1), strict=True):
                    use.see(group)
            return Quantized(self.up(straight_through(sphere, signs * self.bits**-0.5)), codes, losses)

    def decode(self, codes: Tensor) -> Tensor:
        with full_precision(codes):
            return self.up(to_signs(codes, self.per_code).flatten(-2) * self.bits**-0.5)

    def entropy(self, sphere: Tensor) -> Tensor:
        """[..., bits] -> mean entropy of a latent's code minus the entropy of the mean bits, in nats, both sums over bits"""
        logits = 4 * sphere.flatten(0, -2) * self.bits**-0.5 / self.temperature
        each = _binary_entropy(logits.sigmoid()).sum(-1).mean()
        return each - _binary_entropy(logits.sigmoid().mean(0)).sum()


def _binary_entropy(p: Tensor) -> Tensor:
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))
