"""What is predicted at once: the positions of a grid in groups, and the order of the groups (xAR's entities).

Each function gives, for a grid of rows and columns, the positions [entities, positions of one]: a permutation of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from components.registry import ComponentError

Entity = Literal["token", "cell", "subsample", "image"]


def token(rows: int, columns: int, size: int) -> Tensor:
    """Each position on its own, in raster order"""
    return torch.arange(rows * columns)[:, None]


def cell(rows: int, columns: int, size: int) -> Tensor:
    """Squares of `size` x `size` neighbours, in raster order"""
    _divides(rows, columns, size)
    grid = torch.arange(rows * columns).view(rows // size, size, columns // size, size)
    return grid.transpose(1, 2).reshape(-1, size * size)


def subsample(rows: int, columns: int, size: int) -> Tensor:
    """Every `size`-th position both ways: `size`^2 coarse pictures one after another"""
    _divides(rows, columns, size)
    grid = torch.arange(rows * columns).view(rows // size, size, columns // size, size)
    return grid.permute(1, 3, 0, 2).reshape(size * size, -1)


def image(rows: int, columns: int, size: int) -> Tensor:
    """All at once"""
    return torch.arange(rows * columns)[None]


ENTITIES: dict[Entity, Callable[[int, int, int], Tensor]] = {
    "token": token,
    "cell": cell,
    "subsample": subsample,
    "image": image,
}


def _divides(rows: int, columns: int, size: int) -> None:
    if rows % size or columns % size:
        raise ComponentError(f"{size} does not divide a grid of {rows} x {columns} latents", ("size",))
