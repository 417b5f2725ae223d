"""Metrics that hold samples against held-out images in the features of a network: a bounded number of each."""

from __future__ import annotations

import torch

from components.evaluation._reservoir import Reservoir
from components.interfaces import EvaluationBatch, Metric, Networks
from components.networks import refer


class TwoSides(Metric):
    """`real` and `drawn` keep at most `most` feature vectors each."""

    def keep(self, networks: Networks, network: str, most: int) -> None:
        self.network = refer(networks, network)
        self.real, self.drawn = Reservoir(most, 0), Reservoir(most, 1)

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        for reservoir, images in ((self.real, batch.heldout), (self.drawn, batch.samples)):
            if images is not None:
                reservoir.update(self.network.features(images), batch.numbers)

    def merge(self, other: Metric) -> None:
        assert isinstance(other, TwoSides)
        self.real.merge(other.real)
        self.drawn.merge(other.drawn)
