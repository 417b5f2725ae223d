"""Vision transformers around latents: patches in, patches out, on the blocks of `components/backbones`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from components.backbones.transformer import Transformer
from components.interfaces import SequenceShape, Visible


class Patches(nn.Module):
    """Images [B, C, S, S] -> [B, (S / p)^2, W]"""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images).flatten(2).transpose(1, 2)


class Pixels(nn.Module):
    """[B, (S / p)^2, W] -> images [B, C, S, S]"""

    def __init__(self, channels: int, patch: int, width: int, side: int) -> None:
        super().__init__()
        self.shape = (channels, patch, side)
        self.project = nn.Linear(width, channels * patch * patch)

    def forward(self, hidden: Tensor) -> Tensor:
        channels, patch, side = self.shape
        patches = self.project(hidden).unflatten(-1, (channels, patch, patch)).unflatten(1, (side, side))
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(hidden), channels, side * patch, side * patch)


class Everyone(nn.Module):
    """A transformer in which every position sees every other, [B, T, W] -> [B, T, W]; T is at most that of `shape`. With a
    grid, rotary positions are rows and columns, and what stands before it is at the origin."""

    def __init__(self, shape: SequenceShape, depth: int, width: int, heads: int) -> None:
        super().__init__()
        axes: Literal[1, 2] = 1 if shape.grid is None else 2
        self.backbone = Transformer(shape, depth=depth, width=width, heads=heads, axes=axes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.backbone(hidden, mask=Visible.ALL)

    def with_first(self, first: Tensor, grid: Tensor) -> Tensor:
        """`first` [B, m, W] with m at most the shape's prefix, before the grid [B, N, W]: each keeps its own positions."""
        prefix = self.backbone.shape.prefix
        here = torch.arange(first.shape[1], device=first.device)
        there = torch.arange(prefix, prefix + grid.shape[1], device=first.device)
        joined = torch.cat([first, grid], 1)
        return self.backbone(joined, mask=Visible.ALL, positions=torch.cat([here, there]))
