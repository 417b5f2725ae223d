"""A code used less than a share of an even use is given up (Jukebox, Dhariwal et al. 2020, arXiv:2005.00341, section 3)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from components.interfaces import Revival


class ReplaceUnused(Revival):
    """
    >>> import torch
    >>> ReplaceUnused(below=0.5).dead(torch.tensor([4.0, 3.5, 0.5, 0.0]))
    tensor([False, False,  True,  True])
    """

    def __init__(self, *, below: Annotated[float, Field(ge=0, le=1, description="share of an even use")] = 0.1) -> None:
        self.below = below

    def dead(self, counts: Tensor) -> Tensor:
        return counts < self.below * (counts.sum() / len(counts))
