"""The probability that a classifier gives to the class that was asked for.

1. The classifier's logits of a decoded sample go through a softmax; the asked class's entry p is its probability.
2. The score is min(p, `saturation`): a sample that is clearly right earns nothing by becoming more typical, so the
   policy has no reason to trade variety for the classifier's favorite picture.
3. The network is frozen and in eval mode; the score is a function of image and label alone.

Why the probability and not its logarithm: within a group of rollouts the logarithm is ruled by the few worst samples
(log 1e-4 weighs as much as ten ordinary mistakes), and it has no upper end within reach. Deliberately absent: any mix
with aesthetic or likelihood scores; a second reward is a second class.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Networks, Reward
from components.networks import Reference, refer


class ClassProbability(Reward):
    """Scores in [0, saturation]. The labels must be among the classes that the network was trained on."""

    def __init__(
        self,
        networks: Networks,
        *,
        network: Reference = "@reward",
        saturation: Annotated[float, Field(gt=0, le=1)] = 0.9,
    ) -> None:
        self.network, self.saturation = refer(networks, network), saturation

    @torch.no_grad()
    def score(self, images: Tensor, labels: Tensor) -> Tensor:
        probabilities = self.network.logits(images).float().softmax(-1)  # [B, K]
        if int(labels.max()) >= probabilities.shape[1]:
            raise ValueError(
                f"class {int(labels.max())} was asked for; the reward's network knows {probabilities.shape[1]} classes"
            )
        return probabilities.gather(1, labels[:, None]).squeeze(1).clamp(max=self.saturation)
