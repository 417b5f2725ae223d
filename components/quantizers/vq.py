"""Vector quantization: each latent takes the nearest code of a codebook (van den Oord et al., 2017, arXiv:1711.00937).

Its parts are chosen apart from each other, and each is a small class with its own paper:

1. `codebook` says what the codes are and how they learn: a moving average of their latents, a gradient, a linear map of
   frozen codes (SimVQ), a network over all codes (FVQ).
2. `assignment` says which code is nearest: Euclidean, cosine.
3. `gradient` says how a gradient comes through the choice: straight-through, rotation trick, Gumbel, index backpropagation
   (with a learned codebook: IBQ).
4. `regularizers` are losses on latents and codes: commitment, entropy, orthogonality.
5. `revival` says which codes are given up; they take the place of latents of the latest batch. None: none are.

The defaults are the moving average with commitment and revival. `forward` only looks: codes move in `after_step`.
Deliberately absent: projections to a smaller code space (a tokenizer's `dim` says how wide latents are).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import (
    Assignment,
    Codebook,
    GradientEstimator,
    Quantized,
    Quantizer,
    Regularizer,
    Revival,
)
from components.quantizers._codebook import full_precision, picked
from components.quantizers._use import CodeUse
from components.registry import Spec, resolve

MOVING_AVERAGE = resolve(Codebook, {"type": "moving_average"})
EUCLIDEAN = resolve(Assignment, {"type": "euclidean"})
STRAIGHT_THROUGH = resolve(GradientEstimator, {"type": "straight_through"})
COMMITMENT = [resolve(Regularizer, {"type": "commitment"})]
REPLACE_UNUSED = resolve(Revival, {"type": "replace_unused"})


class VQ(Quantizer):
    """Nearest code of one codebook, one code a latent.

    >>> quantizer = VQ(4, codebook_size=16)
    >>> result = quantizer(torch.randn(2, 9, 4))
    >>> result.codes.shape, sorted(quantizer.statistics())
    (torch.Size([2, 9, 1]), ['dead_codes', 'perplexity', 'usage'])
    """

    def __init__(
        self,
        dim: int,
        *,
        codebook_size: Annotated[int, Field(ge=2)] = 1024,
        codebook: Spec[Codebook] = MOVING_AVERAGE,
        assignment: Spec[Assignment] = EUCLIDEAN,
        gradient: Spec[GradientEstimator] = STRAIGHT_THROUGH,
        regularizers: list[Spec[Regularizer]] = COMMITMENT,
        revival: Spec[Revival] | None = REPLACE_UNUSED,
    ) -> None:
        super().__init__()
        self.codebook_sizes = (codebook_size,)
        self.codebook = codebook.build(codebook_size, dim)
        self.assignment, self.gradient = assignment.build(), gradient.build()
        self.regularizers = [(spec.type, spec.build()) for spec in regularizers]
        self.revival = revival.build() if revival is not None else None
        self.use = CodeUse(codebook_size, self.codebook.decay)
        self._seen: list[Tensor] = []  # latents [M, D] of the forwards of a step

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            flat = self.assignment.prepare(latents.float().flatten(0, 1))  # [M, D]
            if self.training:
                self.codebook.fill(flat.detach())
            table = self.assignment.prepare(self.codebook.table())
            codes, vectors = self.gradient(flat, table, self.assignment, self.training)
            losses = self._losses(flat, table, codes) if len(flat) else {}
            if self.training:
                self.use.see(codes)
                self._seen.append(flat.detach())
            return Quantized(vectors.view_as(latents), codes.view(*latents.shape[:2], 1), losses)

    def decode(self, codes: Tensor) -> Tensor:
        with full_precision(codes):
            return self.assignment.prepare(self.codebook.table())[codes.squeeze(-1)]

    def statistics(self) -> dict[str, float]:
        return self.use.statistics()

    def before_step(self, step: int) -> None:
        self._seen = []
        self.use.forget()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """The codebook follows; codes that are given up take the place of latents of this step."""
        if not self._seen:
            return
        latents, codes = torch.cat(self._seen), torch.cat(self.use.seen)
        self._seen = []
        if not self.use.take():
            return
        counts = self.use.counts
        self.codebook.update(latents, codes, counts)
        if self.revival is None or not len(latents) or not bool(torch.isfinite(latents).all()):
            return
        dead, even = self.revival.dead(counts), counts.sum() / len(counts)
        if bool(dead.any()):
            self.codebook.replace(dead, picked(latents, int(dead.sum())), even)
            counts[dead] = even

    def _losses(self, flat: Tensor, table: Tensor, codes: Tensor) -> dict[str, Tensor]:
        quantized = table[codes]
        losses = self.codebook.losses(flat, quantized)
        return losses | {name: loss(flat, quantized, table, self.assignment) for name, loss in self.regularizers}
