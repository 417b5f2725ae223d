"""Distance of feature maps instead of pixels (LPIPS without learned weights), on any network of the recipe.

1. Both images go through the frozen network; each layer's maps are normalized to unit length over their channels.
2. The squared difference is summed over channels, averaged over space, layers and images.

Deliberately absent: the linear weights of LPIPS, which were fitted to people's judgements on one network. Source: Zhang et
al. 2018, https://arxiv.org/abs/1801.03924, section 3.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import FeatureExtractor, Networks, ReconstructionLoss
from components.networks import Reference, refer


def distance(network: FeatureExtractor, x: Tensor, y: Tensor) -> Tensor:
    """[B, C, H, W] twice -> [B]"""
    layers = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(network.maps(x), network.maps(y), strict=True)
    ]
    return torch.stack(layers).mean(0)


class Perceptual(ReconstructionLoss):
    def __init__(self, *, network: Reference, weight: Annotated[float, Field(ge=0)] = 1.0) -> None:
        self.reference, self.weight = network, weight
        self.network: FeatureExtractor | None = None

    def use(self, networks: Networks) -> None:
        self.network = refer(networks, self.reference)
        self.network.eval().requires_grad_(False)

    def __call__(self, drawn: Tensor, images: Tensor) -> Tensor:
        if self.network is None:
            raise ValueError(
                f"the perceptual loss has no network '{self.reference}'; it is handed over before training"
            )
        return self.weight * distance(self.network.to(drawn.device), drawn, images).mean()
