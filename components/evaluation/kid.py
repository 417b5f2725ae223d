"""Kernel distance between samples and held-out images in the features of a network (KID).

1. The squared maximum mean discrepancy with the kernel (x.y / F + 1)^3, unbiased (pairs of an image with itself left out).
2. Estimated on `blocks` disjoint random blocks of at most `block` images of each side; the value is their mean, the
   interval Student's for a mean over blocks. So memory is bounded, whatever the number of images.
3. The name says the network (`kid_judge`); the published KID has the Inception-2015 weights.

Deliberately absent: overlapping subsets, whose spread says too little. Source: Binkowski et al. 2018,
https://arxiv.org/abs/1801.01401, section 4.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from components.evaluation._mean import Mean, student
from components.evaluation._sides import TwoSides
from components.interfaces import Networks, TokenSpec
from components.networks import Reference


def squared_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Features [n, F] and [m, F] -> the unbiased estimate, a scalar; float64 inside."""
    x, y = x.double(), y.double()
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    xx, yy = kernel(x, x), kernel(y, y)
    n, m = len(x), len(y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


class KID(TwoSides):
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def __init__(
        self,
        networks: Networks,
        spec: TokenSpec,
        *,
        network: Reference = "@judge",
        blocks: Annotated[int, Field(ge=2)] = 10,
        block: Annotated[int, Field(ge=2)] = 1000,
    ) -> None:
        self.name, self.blocks = f"kid_{network.removeprefix('@')}", blocks
        self.keep(networks, network, blocks * block)

    def compute(self) -> dict[str, float]:
        real, drawn = self.real.rows, self.drawn.rows
        if real is None or drawn is None or min(len(real), len(drawn)) < 2 * self.blocks:
            return {}
        mean = Mean()
        # Reservoirs are in random order: neighbours of the stream are in different blocks.
        for x, y in zip(real.tensor_split(self.blocks), drawn.tensor_split(self.blocks), strict=True):
            mean.update(squared_discrepancy(x, y)[None])
        return mean.named(self.name, student(self.blocks))
