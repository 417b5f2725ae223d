"""Fréchet distance between samples and held-out images in the features of a network of the run.

1. Mean and covariance (n - 1) of the features of both sides, accumulated batch by batch from rows of which the first
   batch's mean was taken, so large means cost no precision.
2. FD = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)).
3. The last trace is the sum of the roots of the eigenvalues of the symmetric L^T S2 L, S1 = L L^T: no general matrix square
   root, no imaginary parts, no regularization.
4. The interval is that of the first-order influence of each image on the distance (`_influence.py`), from at most 4,096 random
   images a side.

FD is biased upwards by an amount of order 1/n, the more the wider the features: the interval says where the values of other
images *as many as these* lie, not where that of infinitely many does. Compare at equal numbers only. There is no interval
where a side has no more images than there are features: nothing is estimated then.

The name says the network (`fd_judge`): it is not FID, which is defined by the Inception-2015 weights and resizing
(Heusel et al. 2017, https://arxiv.org/abs/1706.08500): that is `fid`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from components.evaluation._influence import Influence
from components.evaluation._mean import Z
from components.evaluation._reservoir import Reservoir
from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec
from components.networks import Reference, refer

_WIDE = 1024  # features from which products are in float32
_GATHERED = 8192  # rows multiplied at a time
_BLOCKS = 8
_ROWS = 4096  # images a side that the interval is taken from


class Moments:
    """Streaming mean [F] and covariance [F, F].

    Rows are gathered and multiplied some thousand at a time, only the blocks on and above the diagonal. Sums are in float64;
    the products of 1,024 features and more in float32, of rows from which the first mean was taken (`benchmarks.frechet`
    holds the result against float64)."""

    def __init__(self) -> None:
        self.total, self.waiting = 0, 0
        self.rows: list[Tensor] = []
        self.shift: Tensor | None = None  # [F] the mean of the first batch
        self.sums: Tensor | None = None  # [F] of rows - shift
        self.products: Tensor | None = None  # [F, F] of rows - shift, blocks on and above the diagonal

    @property
    def count(self) -> int:
        return self.total + self.waiting

    def update(self, features: Tensor) -> None:
        """features [B, F]"""
        if not len(features):
            return
        rows = features.detach().cpu()
        if self.shift is None:
            self.shift = rows.double().mean(0)
            width = len(self.shift)
            self.sums = torch.zeros(width, dtype=torch.float64)
            self.products = torch.zeros(width, width, dtype=torch.float64)
        kind = torch.float32 if len(self.shift) >= _WIDE else torch.float64
        self.rows.append(rows.to(kind) - self.shift.to(kind))
        self.waiting += len(rows)
        if self.waiting >= _GATHERED:
            self._multiply()

    def merge(self, other: Moments) -> None:
        """What another has seen."""
        other._multiply()
        if other.shift is None or other.sums is None or other.products is None:
            return
        if self.shift is None or self.sums is None or self.products is None:
            self.shift, self.sums, self.products = other.shift, other.sums.clone(), other.products.clone()
            self.total = other.total
            return
        self._multiply()
        # sum (x - a)(x - a)^T from sum (x - b)(x - b)^T, with d = b - a
        step, n = other.shift - self.shift, other.total
        cross = torch.outer(step, other.sums)
        self.products += other.products + cross + cross.T + n * torch.outer(step, step)
        self.sums += other.sums + n * step
        self.total += n

    @property
    def mean(self) -> Tensor | None:
        """[F], None before there are rows"""
        self._multiply()
        if self.shift is None or self.sums is None:
            return None
        return self.shift + self.sums / self.total

    def covariance(self) -> Tensor:
        self._multiply()
        if self.products is None or self.sums is None or self.total < 2:
            raise ValueError(f"a covariance needs two images or more, there are {self.total}")
        upper = self.products.triu()
        whole = upper + upper.triu(1).T
        return (whole - torch.outer(self.sums, self.sums) / self.total) / (self.total - 1)

    def _multiply(self) -> None:
        if not self.rows or self.products is None or self.sums is None:
            return
        rows, self.rows = torch.cat(self.rows), []
        self.total, self.waiting = self.total + self.waiting, 0
        self.sums += rows.sum(0, dtype=torch.float64)
        width = rows.shape[1]
        step = max(width // _BLOCKS, 64)
        for start in range(0, width, step):
            block = rows[:, start : start + step]
            self.products[start : start + step, start:] += block.T @ rows[:, start:]


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Means [F], covariances [F, F], float64."""
    factor, failed = torch.linalg.cholesky_ex(covariance_a)
    if failed:  # fewer images than features: a root of the eigenvalues
        values, vectors = torch.linalg.eigh(covariance_a)
        factor = vectors * values.clamp(min=0).sqrt()
    inner = factor.T @ covariance_b @ factor
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(float(distance), 0.0)  # rounding may leave -1e-12 for equal sides


class Features(Protocol):
    def features(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, F]"""
        ...


class FrechetDistance(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def __init__(self, networks: Networks, spec: TokenSpec, *, network: Reference = "@judge") -> None:
        self.keep(f"fd_{network.removeprefix('@')}", refer(networks, network))

    def keep(self, name: str, network: Features) -> None:
        """Starts to collect what is measured under this name."""
        self.name, self.network = name, network
        self.real, self.drawn = Moments(), Moments()
        self.some_real, self.some_drawn = Reservoir(_ROWS, 0), Reservoir(_ROWS, 1)

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        sides = (self.real, self.some_real, batch.heldout), (self.drawn, self.some_drawn, batch.samples)
        for moments, some, images in sides:
            if images is not None:
                features = self.network.features(images)
                moments.update(features)
                some.update(features, batch.numbers)

    def merge(self, other: Metric) -> None:
        assert isinstance(other, FrechetDistance)
        self.real.merge(other.real)
        self.drawn.merge(other.drawn)
        self.some_real.merge(other.some_real)
        self.some_drawn.merge(other.some_drawn)

    def compute(self) -> dict[str, float]:
        means = self.real.mean, self.drawn.mean
        if means[0] is None or means[1] is None:
            return {}
        covariances = self.real.covariance(), self.drawn.covariance()
        value = frechet_distance(means[0], covariances[0], means[1], covariances[1])
        found = {self.name: value}
        influence = Influence(means[0], covariances[0], means[1], covariances[1])
        rows = self.some_real.rows, self.some_drawn.rows
        counts = self.real.count, self.drawn.count
        if rows[0] is None or rows[1] is None or min(counts) <= len(means[0]) or not influence.found:
            return found
        squared = influence.first(rows[0]).var() / counts[0] + influence.second(rows[1]).var() / counts[1]
        half = Z * float(squared) ** 0.5
        return found | {f"{self.name}.low": max(value - half, 0.0), f"{self.name}.high": value + half}
