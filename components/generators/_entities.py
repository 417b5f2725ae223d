"""What is predicted at once: the latents of a grid in groups, and the order of the groups (xAR's entities).

A `Partition` turns latents into a sequence, entity after entity, and back to the last bit. Source: Ren et al. 2025, xAR,
https://arxiv.org/abs/2502.20388, section 3.1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from components.registry import ComponentError

Entity = Literal["token", "cell", "subsample", "scale", "image"]


class Partition(nn.Module):
    """Every position of a grid once: a permutation. `sizes` are the positions of each entity, M their sum."""

    place: Tensor  # [M] where on the grid, in raster order, each position of the sequence stands
    entity: Tensor  # [M] whose it is

    def __init__(self, groups: Sequence[Tensor]) -> None:
        super().__init__()
        self.sizes = [len(group) for group in groups]
        self.register_buffer("place", torch.cat(list(groups)), persistent=False)
        numbers = [torch.full((size,), entity) for entity, size in enumerate(self.sizes)]
        self.register_buffer("entity", torch.cat(numbers), persistent=False)

    def split(self, latents: Tensor) -> Tensor:
        """[B, N, D] -> [B, M, D]"""
        return latents[:, self.place]

    def join(self, sequence: Tensor) -> Tensor:
        """The inverse of `split`"""
        return torch.empty_like(sequence).index_copy_(1, self.place, sequence)


class Pyramid(Partition):
    """Means over squares of falling sides `factors`, the last of which is 1: the latents themselves."""

    def __init__(self, rows: int, columns: int, factors: Sequence[int]) -> None:
        grid = torch.arange(rows * columns).view(rows, columns)
        super().__init__([grid[f // 2 :: f, f // 2 :: f].flatten() for f in factors])  # a square stands at its middle
        self.rows, self.columns, self.factors = rows, columns, factors

    def split(self, latents: Tensor) -> Tensor:
        grid = latents.unflatten(1, (self.rows, self.columns))
        means = [grid.unflatten(2, (-1, f)).unflatten(1, (-1, f)).mean((2, 4)).flatten(1, 2) for f in self.factors[:-1]]
        return torch.cat([*means, latents], 1)

    def join(self, sequence: Tensor) -> Tensor:
        return sequence[:, -self.sizes[-1] :]


def token(rows: int, columns: int, size: int) -> Partition:
    """Each position on its own, in raster order"""
    return Partition(list(torch.arange(rows * columns)[:, None]))


def cell(rows: int, columns: int, size: int) -> Partition:
    """Squares of `size` x `size` neighbours, in raster order"""
    return Partition(list(_squares(rows, columns, size).transpose(1, 2).reshape(-1, size * size)))


def subsample(rows: int, columns: int, size: int) -> Partition:
    """Every `size`-th position both ways: `size`^2 coarse pictures one after another"""
    return Partition(list(_squares(rows, columns, size).permute(1, 3, 0, 2).reshape(size * size, -1)))


def scale(rows: int, columns: int, size: int) -> Partition:
    """The whole picture from coarse to fine, each time `size` times as many rows and columns"""
    _squares(rows, columns, size)
    factors = [1]
    while size > 1 and not rows % (factors[0] * size) and not columns % (factors[0] * size):
        factors.insert(0, factors[0] * size)
    return Pyramid(rows, columns, factors)


def image(rows: int, columns: int, size: int) -> Partition:
    """All at once"""
    return Partition([torch.arange(rows * columns)])


ENTITIES: dict[Entity, Callable[[int, int, int], Partition]] = {
    "token": token,
    "cell": cell,
    "subsample": subsample,
    "scale": scale,
    "image": image,
}


def _squares(rows: int, columns: int, size: int) -> Tensor:
    """The positions as [rows / size, size, columns / size, size]"""
    if rows % size or columns % size:
        raise ComponentError(f"{size} does not divide a grid of {rows} x {columns} latents", ("size",))
    return torch.arange(rows * columns).view(rows // size, size, columns // size, size)
