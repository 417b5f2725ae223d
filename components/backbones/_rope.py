"""Rotary position embedding in one dimension and more.

Channel pairs (i, i + d/2) of a query or key at position p are turned by the angle p * base^(-2i/d), so that their inner
product depends on the distance of two positions only. Source: Su et al. 2021, RoFormer, equation 34,
https://arxiv.org/abs/2104.09864. With several axes (rows and columns of a grid) each
axis turns an equal share of the pairs: Heo et al. 2024, https://arxiv.org/abs/2403.13298, section 3.2 (axial).
"""

from __future__ import annotations

import torch
from torch import Tensor


def table(coordinates: Tensor, dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Coordinates [P, axes] -> cosines and signed sines [P, dim]: `rotate` is then two products and a sum."""
    axes = coordinates.shape[1]
    share = dim // axes  # channels turned by one axis
    frequencies = base ** (-torch.arange(0, share, 2, dtype=torch.float64) / share)
    angles = (coordinates.double()[:, :, None] * frequencies).flatten(1)  # [P, dim / 2]
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., T, dim] at the positions of cos and sin [T, dim] -> [..., T, dim]"""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin
