"""Residual vector quantization: each stage quantizes what the stages before it have left (SoundStream).

1. r_1 = z; stage m takes the code q_m nearest to r_m, and r_{m+1} = r_m - q_m; the latent becomes the sum of the q_m.
2. Each stage is a `vq` with a codebook of its own, and its own losses.
3. With probability `stage_dropout` a training batch goes on with the first n stages only, n uniform in 1..M, so that
   fewer codes are a coarser latent. The codes of all stages are returned.
4. Every stage gives an equal share of the gradient: with straight-through that is the identity.

Deliberately absent: a dropout of its own for each sample, shared codebooks. Source: Zeghidour et al. 2021,
https://arxiv.org/abs/2107.03312, section III-C.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import Assignment, Codebook, GradientEstimator, Quantized, Regularizer, Revival
from components.quantizers._codebook import full_precision
from components.quantizers._several import OfVQs
from components.quantizers.vq import COMMITMENT, EUCLIDEAN, MOVING_AVERAGE, REPLACE_UNUSED, STRAIGHT_THROUGH
from components.registry import Spec


class RVQ(OfVQs):
    """`stages` codes a latent.

    >>> quantizer = RVQ(4, stages=3, codebook_size=16)
    >>> quantizer(torch.randn(2, 9, 4)).codes.shape
    torch.Size([2, 9, 3])
    """

    def __init__(
        self,
        dim: int,
        *,
        stages: Annotated[int, Field(ge=1)] = 8,
        codebook_size: Annotated[int, Field(ge=2)] = 1024,
        codebook: Spec[Codebook] = MOVING_AVERAGE,
        assignment: Spec[Assignment] = EUCLIDEAN,
        gradient: Spec[GradientEstimator] = STRAIGHT_THROUGH,
        regularizers: list[Spec[Regularizer]] = COMMITMENT,
        revival: Spec[Revival] | None = REPLACE_UNUSED,
        stage_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.codebook_sizes, self.stage_dropout = (codebook_size,) * stages, stage_dropout
        parts = self.make(stages, dim, codebook_size, codebook, assignment, gradient, regularizers, revival)
        self.parts, self.stages = parts, nn.ModuleList(parts)

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            kept = len(self.parts)
            if self.training and self.stage_dropout and float(torch.rand(())) < self.stage_dropout:
                kept = int(torch.randint(1, len(self.parts) + 1, ()))
            residual, total = latents.float(), torch.zeros_like(latents, dtype=torch.float32)
            gradients, codes = torch.zeros_like(total), []
            losses: dict[str, Tensor] = {}
            for stage, part in enumerate(self.parts):
                result = part(residual)
                codes.append(result.codes)
                residual = residual - result.latents.detach()
                if stage < kept:
                    total = total + result.latents.detach()
                    gradients = gradients + (result.latents - result.latents.detach()) / kept
                    losses |= {f"{name}_{stage}": loss for name, loss in result.losses.items()}
            return Quantized(total + gradients, torch.cat(codes, -1), losses)

    def decode(self, codes: Tensor) -> Tensor:
        return self.decode_first(codes)

    def decode_first(self, codes: Tensor) -> Tensor:
        """The codes of the first stages [B, N, n], n <= M -> the coarser latents [B, N, D]"""
        total = self.parts[0].decode(codes[..., :1]) + 0.0  # as forward adds: from zero
        for stage in range(1, codes.shape[-1]):
            total = total + self.parts[stage].decode(codes[..., stage : stage + 1])
        return total
