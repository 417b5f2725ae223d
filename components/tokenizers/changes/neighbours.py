"""Tokens replaced by near ones, as a generator mistakes them (latent perturbation, RobusTok).

1. In the first `share` of a batch's images each position is chosen with probability `rate`, and its code replaced by one
   drawn uniformly among the `nearest` codes to the encoder's latent, the chosen code itself among them.
2. The gradient passes straight through to the latent; codebook and commitment losses saw the clean assignment.
3. Between steps `anneal_from` and `anneal_to` rate and neighbourhood fall linearly to half: strong noise first.

For quantizers of one codebook (`vq`). Deliberately absent: the semantic guidance of the paper. Source: Qiu et al. 2025,
https://arxiv.org/abs/2503.08354, section 3.2.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import LatentChange, Quantized, Quantizer
from components.quantizers._codebook import straight_through
from components.quantizers.vq import VQ
from components.registry import ComponentError


def neighbourhood(latents: Tensor, quantizer: VQ, nearest: int) -> Tensor:
    """Latents [B, N, D] -> the codes nearest to each, nearest first, [B, N, nearest] (all where there are fewer)."""
    flat = quantizer.assignment.prepare(latents.float().flatten(0, 1))
    table = quantizer.assignment.prepare(quantizer.codebook.table())
    near = quantizer.assignment.logits(flat, table).topk(min(nearest, len(table)), -1).indices
    return near.view(*latents.shape[:2], near.shape[1])


def perturbed(latents: Tensor, codes: Tensor, quantizer: VQ, *, rate: float, share: float, nearest: int) -> Tensor:
    """Latents [B, N, D] and their codes [B, N, 1] -> codes with some replaced, [B, N, 1]; torch's global random numbers."""
    images = math.floor(share * len(codes))
    near = neighbourhood(latents[:images], quantizer, nearest).flatten(0, 1)  # [images * N, nearest]
    drawn = near.gather(1, torch.randint(near.shape[1], (len(near), 1), device=near.device)).view(
        images, codes.shape[1], 1
    )
    chosen = torch.rand(images, codes.shape[1], 1, device=codes.device) < rate
    return torch.cat([torch.where(chosen, drawn, codes[:images]), codes[images:]])


class Neighbours(LatentChange):
    def __init__(
        self,
        *,
        rate: Annotated[float, Field(ge=0, le=1)] = 1.0,
        share: Annotated[float, Field(ge=0, le=1)] = 0.1,
        nearest: Annotated[int, Field(ge=1)] = 100,
        anneal_from: Annotated[int, Field(ge=0, description="step")] = 0,
        anneal_to: Annotated[int, Field(ge=0, description="step; 0: never")] = 0,
    ) -> None:
        self.rate, self.share, self.nearest = rate, share, nearest
        self.anneal_from, self.anneal_to = anneal_from, anneal_to

    def strength(self, step: int) -> float:
        """1 at first, 1/2 at the end"""
        if self.anneal_to <= self.anneal_from:
            return 1.0
        progress = (step - self.anneal_from) / (self.anneal_to - self.anneal_from)
        return 1 - 0.5 * min(max(progress, 0.0), 1.0)

    def __call__(self, latents: Tensor, quantized: Quantized, quantizer: Quantizer, step: int) -> Tensor:
        if not isinstance(quantizer, VQ):
            raise ComponentError(
                f"neighbours are codes of one codebook; {type(quantizer).__name__} has none: choose 'vq'",
                ("change", "type"),
            )
        strength = self.strength(step)
        with torch.no_grad():
            codes = perturbed(
                latents,
                quantized.codes,
                quantizer,
                rate=strength * self.rate,
                share=self.share,
                nearest=max(1, round(strength * self.nearest)),
            )
            replaced = quantizer.decode(codes)
        moved = (codes != quantized.codes).expand_as(replaced)
        return torch.where(moved, straight_through(latents.float(), replaced), quantized.latents)
