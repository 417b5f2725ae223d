"""Rotary position embedding in one dimension.

Channel pairs (i, i + d/2) of a query or key at position p are turned by the angle p * base^(-2i/d), so that their inner
product depends on the distance of two positions only. Source: Su et al. 2021, RoFormer, equation 34,
https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

import torch
from torch import Tensor


def table(length: int, dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [length, dim]: `rotate` is then two products and a sum."""
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)  # [length, dim / 2]
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., T, dim] at the positions of cos and sin [T, dim] -> [..., T, dim]"""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin
