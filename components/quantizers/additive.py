"""Additive quantization: a latent is the sum of one code from each of M full-width codebooks, chosen together (AVQ).

1. The codes minimize |z - sum of c_m| jointly: beam search over the codebooks keeps the `beam` best partial sums, and the
   result is never worse than taking codes greedily one after another, as residual quantization does.
2. All codebooks follow by least squares: given the codes, the table that minimizes the error over what was seen lately
   solves (A + ridge) C = B, A how often codes occur together and B the sums of their latents, moving averages of both.
3. They start as residual quantization would: each from what the ones before it leave of the first batch.
4. Gradients pass straight through; latents are pulled to their sums by the commitment loss.

Deliberately absent: a gradient for the codes, revival (a code that nothing uses stays where it is). Source: Babenko and
Lempitsky 2014, Additive quantization for extreme vector compression, CVPR, sections 3.1 and 3.2.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import Quantized
from components.quantizers._codebook import full_precision, nearest, picked, straight_through
from components.quantizers._several import OfUses
from components.training import distributed

_ROWS = 1024  # latents searched at a time


class Additive(OfUses):
    """`codebooks` codes a latent; solving takes (codebooks * codebook_size)^3, so a few hundred codes in all are meant.

    >>> quantizer = Additive(4, codebooks=2, codebook_size=16)
    >>> quantizer(torch.randn(2, 9, 4)).codes.shape
    torch.Size([2, 9, 2])
    """

    table: Tensor  # [M, K, D]
    pairs: Tensor  # [M K, M K] moving average of how often two codes occur together
    sums: Tensor  # [M K, D] moving average of the sums of codes' latents
    filled: Tensor  # [] bool

    def __init__(
        self,
        dim: int,
        *,
        codebooks: Annotated[int, Field(ge=1)] = 4,
        codebook_size: Annotated[int, Field(ge=2)] = 64,
        beam: Annotated[int, Field(ge=1)] = 8,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        ridge: Annotated[float, Field(gt=0)] = 1e-3,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
    ) -> None:
        super().__init__()
        self.count([codebook_size] * codebooks)
        self.beam, self.decay, self.ridge, self.commitment_weight = beam, decay, ridge, commitment_weight
        every = codebooks * codebook_size
        self.register_buffer("table", torch.randn(codebooks, codebook_size, dim) * codebooks**-0.5)
        self.register_buffer("pairs", torch.zeros(every, every))
        self.register_buffer("sums", torch.zeros(every, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self._seen: list[tuple[Tensor, Tensor]] = []  # latents [n, D], codes [n, M]

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            latents = latents.float()
            flat = latents.detach().flatten(0, 1)
            if self.training:
                self._fill(flat)
            codes = self.search(flat)
            vectors = self.decode(codes[None]).view_as(latents)
            losses = {"commitment": self.commitment_weight * F.mse_loss(latents, vectors)} if len(flat) else {}
            if self.training:
                self._seen.append((flat, codes))
                for use, group in zip(self.uses, codes.unbind(-1), strict=True):
                    use.see(group)
            return Quantized(
                straight_through(latents, vectors), codes.view(*latents.shape[:2], len(self.table)), losses
            )

    def decode(self, codes: Tensor) -> Tensor:
        total = self.table[0][codes[..., 0]]
        for book in range(1, len(self.table)):
            total = total + self.table[book][codes[..., book]]
        return total

    @torch.no_grad()
    def search(self, flat: Tensor) -> Tensor:
        """Latents [n, D] -> codes [n, M]: the better of beam search and greedy choice"""
        parts = [self._beam(rows) for rows in flat.split(_ROWS)]
        if not parts:
            return torch.empty(0, len(self.table), dtype=torch.int64, device=flat.device)
        found, greedy = torch.cat(parts), self.greedy(flat)
        better = (self.decode(greedy) - flat).square().sum(-1) < (self.decode(found) - flat).square().sum(-1)
        return torch.where(better[:, None], greedy, found)

    def greedy(self, flat: Tensor) -> Tensor:
        """As residual quantization chooses, [n, M]"""
        residual, codes = flat, []
        for book in self.table:
            codes.append(nearest(residual, book))
            residual = residual - book[codes[-1]]
        return torch.stack(codes, -1)

    def _beam(self, rows: Tensor) -> Tensor:
        n, size = len(rows), self.table.shape[1]
        residuals, codes = rows[:, None], rows.new_zeros(n, 1, 0, dtype=torch.int64)  # [n, beams, D], [n, beams, m]
        for book in self.table:
            distances = residuals.square().sum(-1, keepdim=True) - 2 * residuals @ book.T + book.square().sum(-1)
            best = distances.flatten(1).topk(min(self.beam, distances.shape[1] * size), largest=False).indices
            parent, code = best // size, best % size
            residuals = residuals.gather(1, parent[..., None].expand(-1, -1, rows.shape[1])) - book[code]
            kept = codes.gather(1, parent[..., None].expand(-1, -1, codes.shape[-1]))
            codes = torch.cat([kept, code[..., None]], -1)
        return codes[:, 0]  # topk gives the best first

    def before_step(self, step: int) -> None:
        self._seen = []
        super().before_step(step)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Least squares over what was seen lately."""
        if not self._seen:
            return
        flat, codes = (torch.cat(part) for part in zip(*self._seen, strict=True))
        self._seen = []
        super().after_step(step)
        books, size, dim = self.table.shape
        chosen = (
            F.one_hot(codes + size * torch.arange(books, device=codes.device), books * size).sum(1).float()
        )  # [n, M K]
        pairs, sums = distributed.all_sum(chosen.T @ chosen), distributed.all_sum(chosen.T @ flat)
        if not bool(torch.isfinite(sums).all()) or not bool(pairs.any()):
            return
        self.pairs.lerp_(pairs, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        scale = self.pairs.diagonal().mean()
        system = (self.pairs + self.ridge * scale * torch.eye(len(self.pairs), device=flat.device)).double()
        # Shrinks towards the codes there are, not towards zero: an unused code stays where it is.
        target = self.sums.double() + self.ridge * scale.double() * self.table.flatten(0, 1).double()
        self.table.copy_(torch.linalg.solve(system, target).float().view(books, size, dim))

    @torch.no_grad()
    def _fill(self, flat: Tensor) -> None:
        if bool(self.filled) or not len(flat) or not bool(torch.isfinite(flat).all()):
            return
        residual = flat
        for book in self.table:
            book.copy_(picked(residual, len(book)))
            residual = residual - book[nearest(residual, book)]
        self.filled.fill_(True)
