"""Group-wise lookup-free quantization: signs as codes, with the entropy of each group on its own codes (WeTok).

1. A linear map to `groups` x `bits` channels; each channel becomes its sign, the gradient passing straight through.
2. A group's d signs are one code in [0, 2^d): the codebook is implied and never stored.
3. The entropy loss of a group looks at its 2^d codes only: p = softmax(2 z.c / temperature) over them. The entropy of a
   latent's full code is exactly the sum over its groups; that of the mean p is taken over batch, positions and groups.
4. Commitment pulls channels to their signs. A linear map back.

With one group it is lookup-free quantization (`lfq`); with one bit a group every bit is a code. Memory of the entropy grows
with 2^bits. Deliberately absent: the generative decoder of the paper. Source: Zhuang et al. 2025, WeTok,
https://arxiv.org/abs/2508.05599, section 3.1.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Quantized
from components.quantizers._bits import sign, to_codes, to_signs
from components.quantizers._codebook import entropy_loss, full_precision, straight_through
from components.quantizers._several import OfUses


class GroupedLFQ(OfUses):
    """`groups` codes of `bits` bits a latent.

    >>> quantizer = GroupedLFQ(8, groups=3, bits=4)
    >>> quantizer(torch.randn(2, 9, 8)).codes.shape, quantizer.codebook_sizes
    (torch.Size([2, 9, 3]), (16, 16, 16))
    """

    every: Tensor  # [2^bits, bits] the implied codebook of a group

    def __init__(
        self,
        dim: int,
        *,
        groups: Annotated[int, Field(ge=1)] = 4,
        bits: Annotated[int, Field(ge=1, le=18)] = 8,
        entropy_weight: Annotated[float, Field(ge=0)] = 0.1,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        temperature: Annotated[float, Field(gt=0)] = 0.01,
    ) -> None:
        super().__init__()
        self.count([2**bits] * groups)
        self.bits, self.temperature = bits, temperature
        self.entropy_weight, self.commitment_weight = entropy_weight, commitment_weight
        self.down, self.up = nn.Linear(dim, groups * bits), nn.Linear(groups * bits, dim)
        self.register_buffer("every", to_signs(torch.arange(2**bits), bits), persistent=False)

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            channels = self.down(latents.float()).unflatten(-1, (len(self.uses), self.bits))  # [B, N, groups, bits]
            signs = sign(channels)
            codes = to_codes(signs)
            losses = self._losses(channels, signs) if channels.numel() else {}
            if self.training:
                for use, group in zip(self.uses, codes.unbind(-1), strict=True):
                    use.see(group)
            return Quantized(self.up(straight_through(channels, signs).flatten(-2)), codes, losses)

    def decode(self, codes: Tensor) -> Tensor:
        with full_precision(codes):
            return self.up(to_signs(codes, self.bits).flatten(-2))

    def _losses(self, channels: Tensor, signs: Tensor) -> dict[str, Tensor]:
        losses = {"commitment": self.commitment_weight * F.mse_loss(channels, signs)}
        if self.entropy_weight:
            logits = 2 * channels.flatten(0, -2) @ self.every.T / self.temperature  # [B N groups, 2^bits]
            losses["entropy"] = self.entropy_weight * entropy_loss(logits)
        return losses
