"""Structural similarity, the mean over images (Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861).

1. Means, variances and covariance of both images under a Gaussian window of 11 pixels, sigma 1.5.
2. SSIM = (2 mx my + C1)(2 cov + C2) / ((mx^2 + my^2 + C1)(vx + vy + C2)) with C1 = 0.01^2, C2 = 0.03^2, range [0, 1].
3. Averaged over the positions where the window lies fully inside, over channels, over images.

Equals scikit-image's `structural_similarity(gaussian_weights=True, use_sample_covariance=False, data_range=1)`.
Deliberately absent: downsampling before the comparison and the multi-scale variant.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from components.evaluation._mean import Mean
from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec

_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """[B, C, H, W] twice, values in [0, 1] -> [B]. Raises ValueError below 11 pixels a side."""
    if min(x.shape[-2:]) < 2 * _RADIUS + 1:
        raise ValueError(f"ssim looks through windows of 11x11 pixels; images of {tuple(x.shape[-2:])} are smaller")
    x, y = x.double(), y.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    value = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    value = value / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))
    return value.flatten(1).mean(1)


def _blur(images: Tensor) -> Tensor:
    """The separable Gaussian window over each channel, only where it lies fully inside."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window = window / window.sum()
    flat = images.flatten(0, 1)[:, None]  # [B C, 1, H, W]
    flat = F.conv2d(F.conv2d(flat, window[None, None, :, None]), window[None, None, None, :])
    return flat.view(*images.shape[:2], *flat.shape[2:])


class SSIM(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, networks: Networks, spec: TokenSpec) -> None:
        self.mean = Mean()

    def update(self, batch: EvaluationBatch) -> None:
        if batch.reconstructions is None or batch.heldout is None:
            return
        self.mean.update(ssim((batch.reconstructions + 1) / 2, (batch.heldout + 1) / 2))

    def merge(self, other: Metric) -> None:
        assert isinstance(other, SSIM)
        self.mean.merge(other.mean.count, other.mean.mean, other.mean.scatter)

    def compute(self) -> dict[str, float]:
        return self.mean.named("ssim")
