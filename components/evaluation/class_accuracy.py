"""The share of samples that a network recognizes as the class they were asked for.

`class_accuracy` is over all samples, `class_accuracy.low` and `.high` its 95% interval (Wilson 1927, which stays within
[0, 1] and holds near the ends), `class_accuracy.<k>` the share for class k alone. The network must be one that training
never saw: with the reward's own network this measures how well the reward was exploited.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch

from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec
from components.networks import Reference, refer


def wilson(right: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share, from counts (or from how many independent ones they are worth)."""
    share, square = right / total, z * z / total
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return max(center - half, 0.0), min(center + half, 1.0)


class ClassAccuracy(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, networks: Networks, spec: TokenSpec, *, network: Reference = "@judge") -> None:
        self.network = refer(networks, network)
        self.right: dict[int, int] = {}
        self.total: dict[int, int] = {}

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        if batch.samples is None or batch.sample_labels is None:
            return
        right = self.network.logits(batch.samples).argmax(-1) == batch.sample_labels  # [B]
        for label in batch.sample_labels.unique().tolist():
            chosen = batch.sample_labels == label
            self.right[label] = self.right.get(label, 0) + int(right[chosen].sum())
            self.total[label] = self.total.get(label, 0) + int(chosen.sum())

    def merge(self, other: Metric) -> None:
        assert isinstance(other, ClassAccuracy)
        for label, count in other.total.items():
            self.right[label] = self.right.get(label, 0) + other.right[label]
            self.total[label] = self.total.get(label, 0) + count

    def compute(self) -> dict[str, float]:
        if not self.total:
            return {}
        right, total = sum(self.right.values()), sum(self.total.values())
        low, high = wilson(right, total)
        values = {"class_accuracy": right / total, "class_accuracy.low": low, "class_accuracy.high": high}
        return values | {f"class_accuracy.{k}": self.right[k] / self.total[k] for k in sorted(self.total)}
