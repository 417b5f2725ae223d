"""How many positions are hidden: a number in [0, 1] -> the share of hidden positions, from 1 at 0 down to 0 at 1.

In training the number is uniform; in sampling it is the progress. Source: Chang et al. 2022, MaskGIT,
https://arxiv.org/abs/2202.04200, section 3.3."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["cosine", "linear", "square", "truncated_normal"]

_MEAN, _STD, _LEAST = 1.0, 0.25, 0.7  # of MAR's truncated normal


def cosine(progress: Tensor) -> Tensor:
    return torch.cos(progress * (math.pi / 2))


def linear(progress: Tensor) -> Tensor:
    return 1 - progress


def square(progress: Tensor) -> Tensor:
    return 1 - progress**2


def truncated_normal(progress: Tensor) -> Tensor:
    """The quantile of N(1, 0.25^2) cut to [0.7, 1]: few positions are known, as when an image begins."""
    low, high = (torch.special.ndtr(torch.tensor((x - _MEAN) / _STD)) for x in (_LEAST, 1.0))
    return _MEAN + _STD * torch.special.ndtri(high + (low - high) * progress)


SHARES: dict[Schedule, Callable[[Tensor], Tensor]] = {
    "cosine": cosine,
    "linear": linear,
    "square": square,
    "truncated_normal": truncated_normal,
}
