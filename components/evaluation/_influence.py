"""How much each image moves a Fréchet distance, to first order: what its standard error is made of.

1. FD is a smooth function of two means and covariances; an image x of the first side moves it by about I(x) / n, with
   I(x) = 2 (m1 - m2).c + c^T (1 - T) c - tr((1 - T) S1), c = x - m1.
2. T = S1^(-1/2) (S1^(1/2) S2 S1^(1/2))^(1/2) S1^(-1/2) is the linear map that carries the first normal distribution to the
   second (optimal transport); for the second side it is its inverse, and the means change places.
3. The variance of FD is that of I over the images of a side, divided by their number, summed over the sides (delta method).
   No distribution of the features is assumed.

With S1 = L L^T the map is L^(-T) (L^T S2 L)^(1/2) L^(-1), from one Cholesky factor and one symmetric eigenproblem. Source: the
derivative of the Bures-Wasserstein distance, e.g. Bhatia, Jain, Lim 2017, https://arxiv.org/abs/1712.01504.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Influence:
    """Means [F], covariances [F, F], float64. `found` is False where a covariance has no inverse: then there is none."""

    def __init__(self, mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> None:
        self.means, self.covariances = (mean_a, mean_b), (covariance_a, covariance_b)
        factor, failed = torch.linalg.cholesky_ex(covariance_a)
        self.found = not failed
        if not self.found:
            return
        inner = factor.T @ covariance_b @ factor
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        self.found = bool(values[0] > values[-1] * len(values) * torch.finfo(values.dtype).eps)
        if not self.found:
            return
        roots = values.sqrt()
        # L^(-T) V and L V: columns that the roots of the eigenvalues stand between
        outward = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
        inward = factor @ vectors
        self.maps = (outward * roots) @ outward.T, (inward / roots) @ inward.T

    def first(self, rows: Tensor) -> Tensor:
        """Features of the first side, [n, F] -> [n]"""
        return self._of(rows, 0)

    def second(self, rows: Tensor) -> Tensor:
        """Features of the second side, [n, F] -> [n]"""
        return self._of(rows, 1)

    def _of(self, rows: Tensor, side: int) -> Tensor:
        centred = rows.double() - self.means[side]
        curvature = torch.eye(len(self.means[0]), dtype=torch.float64, device="cpu") - self.maps[side]
        quadratic = ((centred @ curvature) * centred).sum(1) - (curvature * self.covariances[side]).sum()
        return 2 * centred @ (self.means[side] - self.means[1 - side]) + quadratic
