"""Vector quantization with a codebook that follows its latents (van den Oord et al., 2017, arXiv:1711.00937, appendix A.1).

Mechanism: 1. each latent takes its nearest code; 2. the gradient passes straight through; 3. each code moves to the
exponential average of the latents assigned to it, so the codebook has no gradient; 4. latents are pulled to their codes
by the commitment loss; 5. a code that is used too rarely is replaced by a latent of the current batch (revival, Jukebox
2020, arXiv:2005.00341), and the first batch fills the codebook.
Deliberately absent: the gradient-trained codebook of VQGAN, several codebooks, projections to a smaller code space.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, distributed

from components.interfaces import Quantized, Quantizer
from components.quantizers._codebook import commitment, nearest, straight_through


class VQ(Quantizer):
    """Nearest code of a learned codebook, one code a latent.

    >>> quantizer = VQ(4, codebook_size=16)
    >>> result = quantizer(torch.randn(2, 9, 4))
    >>> result.codes.shape
    torch.Size([2, 9, 1])
    """

    average: Tensor
    counts: Tensor
    filled: Tensor

    def __init__(
        self,
        dim: int,
        *,
        codebook_size: Annotated[int, Field(ge=2)] = 1024,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        decay: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        revive_below: Annotated[float, Field(ge=0, le=1, description="share of an even use")] = 0.1,
    ) -> None:
        super().__init__()
        self.codebook_sizes = (codebook_size,)
        self.commitment_weight, self.decay, self.revive_below = commitment_weight, decay, revive_below
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("average", torch.zeros(codebook_size, dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))

    codebook: Tensor  # [K, D]

    def forward(self, latents: Tensor) -> Quantized:
        flat = latents.reshape(-1, latents.shape[-1])
        if self.training:
            self._fill(flat)
        codes = nearest(flat.float(), self.codebook)
        quantized = self.codebook[codes].view_as(latents).to(latents.dtype)
        losses = {"commitment": self.commitment_weight * commitment(latents, quantized)}
        if self.training:
            self._follow(flat.detach().float(), codes)
        return Quantized(straight_through(latents, quantized), codes.view(*latents.shape[:2], 1), losses)

    def decode(self, codes: Tensor) -> Tensor:
        return self.codebook[codes.squeeze(-1)]

    @torch.no_grad()
    def _fill(self, flat: Tensor) -> None:
        """The first batch becomes the codebook."""
        if bool(self.filled) or not len(flat):
            return
        self.codebook.copy_(self._picked(flat.detach().float(), len(self.codebook)))
        self.average.copy_(self.codebook)
        self.filled.fill_(True)

    @torch.no_grad()
    def _follow(self, flat: Tensor, codes: Tensor) -> None:
        """One step of the averages; codes that nothing uses take the place of latents of this batch."""
        size = len(self.codebook)
        counts = torch.bincount(codes, minlength=size).float()
        sums = torch.zeros_like(self.average).index_add_(0, codes, flat)
        if distributed.is_initialized():
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.average.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + 1e-5) / (total + size * 1e-5) * total  # Laplace smoothing, as in the paper's code
        self.codebook.copy_(self.average / smoothed[:, None])
        dead = self.counts < self.revive_below * total / size
        if bool(dead.any()):
            fresh = self._picked(flat, int(dead.sum()))
            self.codebook[dead] = fresh
            even = total / size
            self.counts[dead] = even
            self.average[dead] = fresh * even

    def _picked(self, flat: Tensor, n: int) -> Tensor:
        """n latents of the batch, the same in every process."""
        picked = flat[torch.randint(len(flat), (n,), device=flat.device)]
        if distributed.is_initialized():
            distributed.broadcast(picked, 0)
        return picked
