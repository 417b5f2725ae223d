"""Pictures that stages show: originals over reconstructions, two sets of samples beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pairs(originals: Tensor, reconstructions: Tensor, columns: int = 10) -> bytes:
    """[n, C, S, S] in [-1, 1] twice -> PNG; each row of originals has the row of its reconstructions below it."""
    from components.data.batches import to_uint8
    from components.data.images import grid

    starts = range(0, len(originals), columns)
    rows = [to_uint8(images[start : start + columns]) for start in starts for images in (originals, reconstructions)]
    return grid(rows)


def rows(images: Sequence[Tensor]) -> bytes:
    """One row of pictures [n, C, S, S] in [-1, 1] for each entry -> PNG"""
    from components.data.batches import to_uint8
    from components.data.images import grid

    return grid([to_uint8(row) for row in images])


def beside(left: Sequence[Tensor], right: Sequence[Tensor]) -> bytes:
    """As `rows` twice, side by side with a white column between them."""
    import torch

    return rows([torch.cat([a, torch.ones_like(a[:1]), b]) for a, b in zip(left, right, strict=True)])
