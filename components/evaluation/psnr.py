"""Peak signal-to-noise ratio of reconstructions, in dB, the mean over images.

Each image's mean squared error is taken over pixels and channels with values scaled to [0, 1]; PSNR = -10 log10(MSE).
An exact reconstruction has no finite value and counts as 100 dB. Deliberately absent: 8-bit rounding, cropping, and the
variant that pools the error over all images before taking the logarithm.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec

_EXACT = 1e-10  # 100 dB


class PSNR(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, networks: Networks, spec: TokenSpec) -> None:
        self.total, self.count = 0.0, 0

    def update(self, batch: EvaluationBatch) -> None:
        if batch.reconstructions is None or batch.heldout is None:
            return
        difference = (batch.reconstructions.double() - batch.heldout.double()) / 2  # [-1, 1] has a range of 2
        error = difference.square().flatten(1).mean(1).clamp(min=_EXACT)  # [B]
        self.total += float(-10 * error.log10().sum())
        self.count += len(error)

    def compute(self) -> dict[str, float]:
        return {"psnr": self.total / self.count} if self.count else {}
