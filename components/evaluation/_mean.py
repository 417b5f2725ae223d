"""A mean over images, streaming, with its confidence interval."""

from __future__ import annotations

import math

from torch import Tensor

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations


def student(count: int) -> float:
    """Within so many estimated standard errors lies, with 95 %, the mean of `count` normal values (Student 1908)."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975))


class Mean:
    """Of numbers that come in batches and from several workers; count, mean and sum of squares about it in float64.

    >>> import torch
    >>> mean = Mean()
    >>> mean.update(torch.tensor([1.0, 2.0, 3.0]))
    >>> mean.named("x")["x"]
    2.0
    """

    def __init__(self) -> None:
        self.count, self.mean, self.scatter = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """values [B]"""
        if len(values):
            rows = values.detach().double()
            self.merge(len(rows), float(rows.mean()), float((rows - rows.mean()).square().sum()))

    def merge(self, count: int, mean: float, scatter: float) -> None:
        """What another has seen (Chan, Golub, LeVeque 1979)."""
        if not count:
            return
        total, step = self.count + count, mean - self.mean
        self.scatter += scatter + step * step * self.count * count / total
        self.mean += step * count / total
        self.count = total

    def named(self, name: str, z: float = Z) -> dict[str, float]:
        """The mean and, from two values on, the ends of its 95 % interval; nothing without values. Of few values `z` is
        `student(count)`."""
        if not self.count:
            return {}
        found = {name: self.mean}
        if self.count > 1:
            half = z * math.sqrt(self.scatter / (self.count - 1) / self.count)
            found |= {f"{name}.low": self.mean - half, f"{name}.high": self.mean + half}
        return found
