"""Every channel of a frozen latent on its own, after training: equal-mass Gaussian bins (TokenBridge).

1. Latents are those of a trained autoencoder; nothing here is learned and no gradient passes.
2. A channel is brought to [-3, 3]: x' = 6 (x - low) / (high - low) - 3, clamped.
3. Boundaries are the quantiles i / 2^bits of the standard normal, clamped to [-3, 3]; a bin's value is the mean of the
   normal within it; the code is that of the nearest value.
4. One code a channel: 2^bits levels, (2^bits)^D codes a position, without a codebook.
5. `fit` sets low and high to what the data's channels span, instead of the published -5 and 5.

Equal-mass bins use all codes about equally often; their squared error is not the least possible. Deliberately absent: the
order of channels (the head's). Source: Wang et al. 2025, TokenBridge, https://arxiv.org/abs/2503.16430, section 3.2.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Quantized
from components.quantizers._codebook import full_precision, straight_through
from components.quantizers._several import OfUses
from components.registry import ComponentError

_EDGE = 3.0  # standard deviations


def normal_bins(bits: int) -> tuple[Tensor, Tensor]:
    """(boundaries [2^bits + 1], the conditional means of the standard normal between them [2^bits]), float64"""
    count = 2**bits
    inner = torch.special.ndtri(torch.arange(1, count, dtype=torch.float64) / count)
    edges = torch.cat([inner.new_tensor([-_EDGE]), inner.clamp(-_EDGE, _EDGE), inner.new_tensor([_EDGE])])
    density = torch.exp(-0.5 * edges**2) / (2 * torch.pi) ** 0.5
    mass = torch.special.ndtr(edges).diff()
    return edges, -density.diff() / mass


class DimensionWise(OfUses):
    """D codes a latent of width D, `bits` bits each.

    >>> quantizer = DimensionWise(4, bits=3)
    >>> quantizer(torch.randn(2, 9, 4)).codes.shape, quantizer.codebook_sizes
    (torch.Size([2, 9, 4]), (8, 8, 8, 8))
    """

    values: Tensor  # [2^bits]
    low: Tensor  # [D]
    high: Tensor  # [D]

    def __init__(
        self,
        dim: int,
        *,
        bits: Annotated[int, Field(ge=1, le=10)] = 6,
        low: float = -5.0,
        high: float = 5.0,
    ) -> None:
        super().__init__()
        if high <= low:
            raise ComponentError(f"must be above low ({low}), got {high}", ("high",))
        self.count([2**bits] * dim)
        self.register_buffer("values", normal_bins(bits)[1].float(), persistent=False)
        self.register_buffer("low", torch.full((dim,), low))
        self.register_buffer("high", torch.full((dim,), high))

    @torch.no_grad()
    def fit(self, latents: Tensor, deviations: float = _EDGE) -> None:
        """Lets [-3, 3] be `deviations` standard deviations of each channel of latents [..., D] around its mean."""
        flat = latents.float().flatten(0, -2)
        if len(flat) < 2 or not bool(torch.isfinite(flat).all()):
            raise ValueError(f"bins are fitted to at least two finite latents, got {list(latents.shape)}")
        mean, std = flat.mean(0), flat.std(0).clamp(min=1e-6)
        self.low.copy_(mean - deviations * std)
        self.high.copy_(mean + deviations * std)

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            scaled = 2 * _EDGE * (latents.detach().float() - self.low) / (self.high - self.low) - _EDGE
            between = (self.values[1:] + self.values[:-1]) / 2
            codes = torch.bucketize(scaled.clamp(-_EDGE, _EDGE).contiguous(), between)
            if self.training:
                for use, channel in zip(self.uses, codes.unbind(-1), strict=True):
                    use.see(channel)
            return Quantized(straight_through(latents.float(), self.decode(codes)), codes)

    def decode(self, codes: Tensor) -> Tensor:
        return (self.values[codes] + _EDGE) / (2 * _EDGE) * (self.high - self.low) + self.low
