"""Perceptual distance of reconstructions on a network of the run: LPIPS without learned weights, the mean over images.

The distance is that of the tokenizer's perceptual loss (`components/tokenizers/losses/perceptual.py`). The name says the
network (`lpips_judge`); it is not the published LPIPS, whose weights belong to a network of their own. The interval is that of
a mean over images (normal). Source: Zhang et al. 2018, https://arxiv.org/abs/1801.03924.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from components.evaluation._mean import Mean
from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec
from components.networks import Reference, refer
from components.tokenizers.losses.perceptual import distance


class LPIPS(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def __init__(self, networks: Networks, spec: TokenSpec, *, network: Reference = "@judge") -> None:
        self.name, self.network, self.mean = f"lpips_{network.removeprefix('@')}", refer(networks, network), Mean()

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        if batch.reconstructions is not None and batch.heldout is not None:
            self.mean.update(distance(self.network, batch.reconstructions, batch.heldout))

    def merge(self, other: Metric) -> None:
        assert isinstance(other, LPIPS)
        self.mean.merge(other.mean.count, other.mean.mean, other.mean.scatter)

    def compute(self) -> dict[str, float]:
        return self.mean.named(self.name)
