"""Signs as codes: what lookup-free and binary spherical quantization share."""

from __future__ import annotations

import torch
from torch import Tensor


def to_codes(signs: Tensor) -> Tensor:
    """[..., d] of which positive numbers are set bits -> [...] int64, the first bit counting one"""
    powers = 2 ** torch.arange(signs.shape[-1], device=signs.device)
    return ((signs > 0) * powers).sum(-1)


def to_signs(codes: Tensor, bits: int) -> Tensor:
    """[...] in [0, 2^d) -> [..., d] of -1 and +1, float32"""
    set_bits = codes[..., None] >> torch.arange(bits, device=codes.device) & 1
    return 2.0 * set_bits - 1.0


def sign(latents: Tensor) -> Tensor:
    """+1 where positive, -1 elsewhere"""
    return torch.where(latents > 0, 1.0, -1.0)
