"""What quantizers are composed of: precision, nearest-code search, straight-through, entropy, measures of use."""

from __future__ import annotations

import torch
from torch import Tensor

from components.training import distributed

_CELLS = 1 << 20  # distances held at once by the search: a few megabytes, which caches hold


def full_precision(latents: Tensor) -> torch.autocast:
    """Autocast off where `latents` are: codes found in half precision are other codes, and a codebook loses its tails."""
    return torch.autocast(latents.device.type, enabled=False)


@torch.no_grad()
def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each latent by Euclidean distance, the first among equals: [M, D], [K, D] -> [M] int64.

    Works through the latents in pieces, so that the M x K matrix of distances is never there as a whole."""
    half_norms = 0.5 * codebook.square().sum(1)
    rows = max(16, _CELLS // len(codebook))
    codes, found = codebook.T, latents.new_empty(len(latents), dtype=torch.long)
    # One buffer for all pieces: freed and taken anew, the allocator would put them one behind the other.
    buffer = latents.new_empty(min(rows, len(latents)), len(codebook))
    for part, result in zip(latents.split(rows), found.split(rows), strict=True):
        distances = torch.addmm(half_norms, part, codes, alpha=-1, out=buffer[: len(part)])
        torch.argmin(distances, 1, out=result)
    return found


def straight_through(latents: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, the gradient of the identity (Bengio et al., 2013, https://arxiv.org/abs/1308.3432).

    Written so that finite latents add an exact zero: the value is `quantized` to the last bit."""
    return quantized.detach() + (latents - latents.detach())


def entropy_loss(logits: Tensor) -> Tensor:
    """[M, K] -> mean over the latents of the entropy of softmax(logits), minus the entropy of its mean, in nats."""
    log_probs = logits.log_softmax(-1)
    probabilities = log_probs.exp()
    each = -(probabilities * log_probs).sum(-1).mean()
    mean = probabilities.mean(0)
    return each + (mean * mean.clamp(min=1e-12).log()).sum()


def picked(latents: Tensor, n: int) -> Tensor:
    """n latents of the global batch, with replacement, evenly from all processes and the same on each."""
    share = -(-n // distributed.world())
    return distributed.all_gather(latents[torch.randint(len(latents), (share,), device=latents.device)])[:n]


@torch.no_grad()
def usage(counts: Tensor) -> tuple[float, float]:
    """(share of the codebook that occurs, perplexity of the code distribution) of how often each code occurs, [K]."""
    shares = counts.double()
    shares /= shares.sum().clamp(min=1e-300)
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum()
    return float((shares > 0).double().mean()), float(entropy.exp())
