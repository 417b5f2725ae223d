"""How much samples of one class differ from each other, relative to real images.

1. Spread of a class = mean Euclidean distance between the features of all pairs of its images.
2. `diversity` = mean over classes of spread(samples) / spread(held-out images): 1 is as varied as reality, 0 a single
   picture for each class.
3. Only samples that the network recognizes as the class they were asked for count. A sample of the wrong class lies far
   from all others; counting it, a generator would lose "diversity" by making fewer mistakes, and errors would hide a
   collapse. `diversity.all` counts every sample, for comparison.

Features are kept (float32, F numbers a sample), since pairs cannot be summed in one pass. Deliberately absent:
distances between classes, which accuracy covers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec
from components.networks import Reference, refer


def spread(features: Tensor) -> float:
    """Mean distance over pairs, [n, F] -> number; needs two rows."""
    rows = features.double()
    n = len(rows)
    return float(torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").sum() / (n * (n - 1)))


class Diversity(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, networks: Networks, spec: TokenSpec, *, network: Reference = "@judge") -> None:
        self.network = refer(networks, network)
        self.real: list[tuple[Tensor, Tensor]] = []  # features [B, F], labels [B]
        self.drawn: list[tuple[Tensor, Tensor, Tensor]] = []  # features, labels, recognized [B]

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        if batch.heldout is not None and batch.heldout_labels is not None:
            self.real.append((self.network.features(batch.heldout).cpu(), batch.heldout_labels.cpu()))
        if batch.samples is not None and batch.sample_labels is not None:
            features, labels = self.network.features(batch.samples).cpu(), batch.sample_labels.cpu()
            self.drawn.append((features, labels, self.network.logits(batch.samples).argmax(-1).cpu() == labels))

    def merge(self, other: Metric) -> None:
        assert isinstance(other, Diversity)
        self.real += other.real
        self.drawn += other.drawn

    def compute(self) -> dict[str, float]:
        if not self.real or not self.drawn:
            return {}
        real, real_labels = (torch.cat(part) for part in zip(*self.real, strict=True))
        drawn, labels, right = (torch.cat(part) for part in zip(*self.drawn, strict=True))
        recognized, every = [], []
        for label in labels.unique():
            reference, chosen = real[real_labels == label], labels == label
            if len(reference) < 2 or int(chosen.sum()) < 2:
                continue  # a class with a single picture has no spread
            scale = spread(reference)
            every.append(spread(drawn[chosen]) / scale)
            kept = drawn[chosen & right]
            recognized.append(spread(kept) / scale if len(kept) > 1 else 0.0)
        if not every:
            return {}
        return {"diversity": sum(recognized) / len(recognized), "diversity.all": sum(every) / len(every)}
