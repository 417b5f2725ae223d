"""How many samples look like real images, and how many real images look like samples (improved precision and recall).

1. Both sides' features span manifolds: around each vector a ball that reaches its `neighbours`-th nearest of its own side.
2. Precision is the share of samples inside a ball of the real side, recall the share of real images inside a ball of the
   samples.
3. At most `most` images of each side are kept (a random reservoir), since pairs cannot be summed in one pass.

Deliberately absent: intervals (shares of one reservoir depend on each other). Source: Kynkaanniemi et al. 2019,
https://arxiv.org/abs/1904.06991, section 3.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.evaluation._sides import TwoSides
from components.interfaces import Networks, TokenSpec
from components.networks import Reference

_ROWS = 512  # distances to so many vectors at a time


def radii(features: Tensor, neighbours: int) -> Tensor:
    """[n, F] -> distance of each to its k-th nearest other, [n]"""
    return torch.cat([torch.cdist(part, features).kthvalue(neighbours + 1, 1).values for part in features.split(_ROWS)])


def inside(points: Tensor, features: Tensor, reach: Tensor) -> Tensor:
    """Whether points [m, F] lie in a ball around features [n, F] of radii [n], [m] bool"""
    return torch.cat([(torch.cdist(part, features) <= reach).any(1) for part in points.split(_ROWS)])


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
        precision = inside(drawn, real, radii(real, self.neighbours)).double().mean()
        recall = inside(real, drawn, radii(drawn, self.neighbours)).double().mean()
        return {"precision_recall.precision": float(precision), "precision_recall.recall": float(recall)}
