"""How many samples look like real images, and how many real images look like samples (improved precision and recall).

1. Both sides' features span manifolds: around each vector a ball that reaches its `neighbours`-th nearest of its own side.
2. Precision is the share of samples inside a ball of the real side, recall the share of real images inside a ball of the
   samples.
3. At most `most` images of each side are kept (a random reservoir), since pairs cannot be summed in one pass.
4. The interval's variance has two parts: that of a share of independent points, balls held fixed, and that of the balls, from
   10 disjoint blocks of their images, each of which makes balls of its own. Both together say how many independent points the
   share is worth; the interval is Wilson's of so many.

Both shares depend on the number of images (more balls, but smaller ones): compare at equal numbers; the interval holds at this
number. Deliberately absent: `realism` of single images, density and coverage. Source: Kynkaanniemi et al. 2019,
https://arxiv.org/abs/1904.06991, section 3.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.evaluation._mean import Z, student
from components.evaluation._sides import TwoSides
from components.evaluation.class_accuracy import wilson
from components.interfaces import Networks, TokenSpec
from components.networks import Reference

_ROWS = 512  # distances to so many vectors at a time
_BLOCKS = 10


def radii(features: Tensor, neighbours: int) -> Tensor:
    """[n, F] -> distance of each to its k-th nearest other, [n]"""
    return torch.cat([torch.cdist(part, features).kthvalue(neighbours + 1, 1).values for part in features.split(_ROWS)])


def inside(points: Tensor, features: Tensor, reach: Tensor) -> Tensor:
    """Whether points [m, F] lie in a ball around features [n, F] of radii [n], [m] bool"""
    return torch.cat([(torch.cdist(part, features) <= reach).any(1) for part in points.split(_ROWS)])


def share(points: Tensor, features: Tensor, neighbours: int, name: str) -> dict[str, float]:
    """Points [m, F], features [n, F] in random order -> the share of points in balls around features, under this name, with
    its interval; none where blocks are too small to make balls."""
    right, total = int(inside(points, features, radii(features, neighbours)).sum()), len(points)
    found = {name: right / total}
    if len(features) // _BLOCKS <= neighbours:
        return found
    blocks = [
        inside(points, block, radii(block, neighbours)).double().mean() for block in features.tensor_split(_BLOCKS)
    ]
    of_balls = float(torch.stack(blocks).var()) / _BLOCKS * (student(_BLOCKS) / Z) ** 2
    guess = (right + 1) / (total + 2)  # never 0 or 1
    of_points = guess * (1 - guess) / total
    worth = of_points / (of_points + of_balls)
    low, high = wilson(worth * right, worth * total)
    return found | {f"{name}.low": low, f"{name}.high": high}


class PrecisionRecall(TwoSides):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(
        self,
        networks: Networks,
        spec: TokenSpec,
        *,
        network: Reference = "@judge",
        neighbours: Annotated[int, Field(ge=1)] = 3,
        most: Annotated[int, Field(ge=2)] = 10_000,
    ) -> None:
        self.neighbours = neighbours
        self.keep(networks, network, most)

    def compute(self) -> dict[str, float]:
        real, drawn = self.real.rows, self.drawn.rows
        if real is None or drawn is None or min(len(real), len(drawn)) <= self.neighbours:
            return {}
        return share(drawn, real, self.neighbours, "precision_recall.precision") | share(
            real, drawn, self.neighbours, "precision_recall.recall"
        )
