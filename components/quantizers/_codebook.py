"""What quantizers are composed of: precision, nearest-code search, the gradient estimator, losses, measures of use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CELLS = 1 << 24  # distances held at once by the search


def full_precision(latents: Tensor) -> torch.autocast:
    """Autocast off where `latents` are: codes found in half precision are other codes, and a codebook loses its tails."""
    return torch.autocast(latents.device.type, enabled=False)


@torch.no_grad()
def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each latent by Euclidean distance: [M, D], [K, D] -> [M] int64.

    Works through the latents in pieces, so that the M x K matrix of distances is never there as a whole."""
    half_norms = 0.5 * codebook.square().sum(1)
    rows = max(1, _CELLS // len(codebook))
    found = [torch.addmm(half_norms, part, codebook.T, alpha=-1).argmin(1) for part in latents.split(rows)]
    return torch.cat(found) if found else latents.new_empty(0, dtype=torch.long)


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, the gradient of the identity (Bengio et al., 2013, https://arxiv.org/abs/1308.3432).

    Written so that finite latents add an exact zero: the value is `quantized` to the last bit."""
    return quantized.detach() + (latents - latents.detach())


def commitment(latents: Tensor, quantized: Tensor) -> Tensor:
    """Pulls latents to their codes (van den Oord et al., 2017, https://arxiv.org/abs/1711.00937, eq. 3, third term)."""
    return F.mse_loss(latents, quantized.detach())


@torch.no_grad()
def usage(counts: Tensor) -> tuple[float, float]:
    """(share of the codebook that occurs, perplexity of the code distribution) of how often each code occurs, [K]."""
    shares = counts.double()
    shares /= shares.sum().clamp(min=1)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return float((shares > 0).double().mean()), float(entropy.exp())
