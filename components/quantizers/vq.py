"""Vector quantization with a codebook that follows its latents (van den Oord et al., 2017, arXiv:1711.00937, app. A.1).

Mechanism: 1. each latent takes its nearest code; 2. the gradient passes straight through; 3. each code moves to the
exponential average of the latents assigned to it, so the codebook has no gradient; 4. latents are pulled to their codes
by the commitment loss; 5. a code that is used too rarely is replaced by a latent of the current batch (revival, Jukebox
2020, arXiv:2005.00341), and the first batch fills the codebook. `forward` only looks: codes move in `after_step`, so a
step that the trainer leaves out leaves no trace.
Deliberately absent: the gradient-trained codebook of VQGAN, several codebooks, projections to a smaller code space.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Quantized, Quantizer
from components.quantizers._codebook import commitment, full_precision, nearest, straight_through
from components.training import distributed


class VQ(Quantizer):
    """Nearest code of a learned codebook, one code a latent.

    >>> quantizer = VQ(4, codebook_size=16)
    >>> result = quantizer(torch.randn(2, 9, 4))
    >>> result.codes.shape
    torch.Size([2, 9, 1])
    """

    codebook: Tensor  # [K, D]
    average: Tensor  # [K, D] moving average of the sum of a code's latents in a batch
    counts: Tensor  # [K] moving average of their number
    filled: Tensor  # [] bool

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
        self._seen: tuple[Tensor, Tensor] | None = None  # latents [M, D] and codes [M] of the latest forward

    def forward(self, latents: Tensor) -> Quantized:
        with full_precision(latents):
            latents = latents.float()
            flat = latents.detach().flatten(0, 1)  # [M, D]
            if self.training:
                self._fill(flat)
            codes = nearest(flat, self.codebook)
            quantized = self.codebook[codes].view_as(latents)
            losses = {"commitment": self.commitment_weight * commitment(latents, quantized)} if len(flat) else {}
            if self.training:
                self._seen = flat, codes
            return Quantized(straight_through(latents, quantized), codes.view(*latents.shape[:2], 1), losses)

    def decode(self, codes: Tensor) -> Tensor:
        return self.codebook[codes.squeeze(-1)]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """One step of the averages; codes that nothing uses take the place of latents of the latest batch."""
        if self._seen is None:
            return
        (flat, codes), self._seen = self._seen, None
        size = len(self.codebook)
        counts = distributed.all_sum(torch.bincount(codes, minlength=size).float())
        sums = distributed.all_sum(torch.zeros_like(self.average).index_add_(0, codes, flat))
        if not len(flat) or not bool(torch.isfinite(sums).all()):
            return
        self.counts.lerp_(counts, 1 - self.decay)
        self.average.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + 1e-5) / (total + size * 1e-5) * total  # Laplace smoothing, as in the paper's code
        self.codebook.copy_(self.average / smoothed[:, None])
        even = total / size
        dead = self.counts < self.revive_below * even
        if bool(dead.any()):
            fresh = _picked(flat, int(dead.sum()))
            self.codebook[dead] = fresh
            self.counts[dead] = even
            self.average[dead] = fresh * even

    @torch.no_grad()
    def _fill(self, flat: Tensor) -> None:
        """The first batch becomes the codebook."""
        if bool(self.filled) or not len(flat):
            return
        fresh = _picked(flat, len(self.codebook))
        if bool(torch.isfinite(fresh).all()):
            self.codebook.copy_(fresh)
            self.average.copy_(fresh)
            self.filled.fill_(True)


def _picked(flat: Tensor, n: int) -> Tensor:
    """n latents of the global batch, evenly from all processes and the same on each."""
    share = -(-n // distributed.world())
    return distributed.all_gather(flat[torch.randint(len(flat), (share,), device=flat.device)])[:n]
