"""Peak signal-to-noise ratio of reconstructions, in dB, the mean over images.

Each image's mean squared error is taken over pixels and channels with values scaled to [0, 1]; PSNR = -10 log10(MSE).
An exact reconstruction has no finite value and counts as 100 dB. The interval is that of a mean over images (normal).
Deliberately absent: 8-bit rounding, cropping, and the variant that pools the error over all images before the logarithm.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from components.evaluation._mean import Mean
from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec

_EXACT = 1e-10  # 100 dB


class PSNR(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, networks: Networks, spec: TokenSpec) -> None:
        self.mean = Mean()

    def update(self, batch: EvaluationBatch) -> None:
        if batch.reconstructions is None or batch.heldout is None:
            return
        difference = (batch.reconstructions.double() - batch.heldout.double()) / 2  # [-1, 1] has a range of 2
        error = difference.square().flatten(1).mean(1).clamp(min=_EXACT)  # [B]
        self.mean.update(-10 * error.log10())

    def merge(self, other: Metric) -> None:
        assert isinstance(other, PSNR)
        self.mean.merge(other.mean.count, other.mean.mean, other.mean.scatter)

    def compute(self) -> dict[str, float]:
        return self.mean.named("psnr")
