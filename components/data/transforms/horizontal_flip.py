"""Mirrors each picture with probability one half."""

from __future__ import annotations

import torch
from torch import Tensor

from components.interfaces import Transform


class HorizontalFlip(Transform):
    """Left and right exchanged for half of the pictures."""

    def __init__(self) -> None: ...

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        flip = torch.rand(len(images), generator=rng) < 0.5
        return torch.where(flip[:, None, None, None], images.flip(-1), images)
