"""A vision transformer like SigLIP 2's, as semantic tokenizers use it: learned positions, norms first, none at the end.

Tensors lie in the order that published ones have: queries, keys and values in one layer. Source: Tschannen et al. 2025,
https://arxiv.org/abs/2502.14786; the transformer is that of Dosovitskiy et al. 2020,
https://arxiv.org/abs/2010.11929."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.tokenizers._vit import Patches

Approximation = Literal["none", "tanh"]  # of GELU


class Positions(nn.Module):
    """One vector for each place of a square of `learned` places a side, stretched to a square of `side`, [N, W]."""

    def __init__(self, learned: int, side: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(learned * learned, width).normal_(std=0.02))
        self.sides = (learned, side)

    def forward(self) -> Tensor:
        learned, side = self.sides
        grid = self.table.T.reshape(1, -1, learned, learned)
        return F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)[0].flatten(1).T


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, approximate: Approximation) -> None:
        super().__init__()
        self.fc1, self.fc2, self.approximate = nn.Linear(width, hidden), nn.Linear(hidden, width), approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, approximate: Approximation) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width, hidden, approximate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SigLIP(nn.Module):
    """Images [B, C, S, S] -> [B, (S / patch)^2, W], row by row."""

    def __init__(
        self,
        channels: int,
        side: int,
        *,
        patch: int,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        positions: int,
        approximate: Approximation,
    ) -> None:
        super().__init__()
        self.patches, self.positions = Patches(channels, patch, width), Positions(positions, side, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, approximate) for _ in range(depth))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.patches(images) + self.positions()
        for block in self.blocks:
            hidden = block(hidden)
        return hidden
