"""Several codes of a position at once, each with its own softmax, independent of one another given the hidden state.

1. One linear layer gives the logits of all codebooks side by side; each codebook's part is a softmax of its own.
2. The likelihood of a position is the product over its codes.

Deliberately absent: any dependence between the codes of a position (`channel_autoregressive` has it). Source: parallel
codebook prediction, Copet et al. 2023, MusicGen, https://arxiv.org/abs/2306.05284, section 2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Draw, Head, TokenSpec


class Factorised(Head):
    """
    >>> head = Factorised(32, TokenSpec((8, 4), 16, "sequence"))
    >>> head.loss(torch.zeros(2, 16, 32), torch.zeros(2, 16, 2).long()).shape
    torch.Size([2, 16, 2])
    """

    def __init__(self, width: int, spec: TokenSpec) -> None:
        super().__init__()
        self.sizes = spec.codebook_sizes
        self.project = nn.Linear(width, sum(self.sizes), bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        parts = self.project(hidden).float().split(self.sizes, -1)
        losses = [
            F.cross_entropy(logits.flatten(0, -2), codes[..., group].flatten(), reduction="none").view(codes.shape[:-1])
            for group, logits in enumerate(parts)
        ]
        return torch.stack(losses, -1)

    def sample(self, hidden: Tensor, draw: Draw) -> Tensor:
        return torch.stack([draw(logits) for logits in self.project(hidden).split(self.sizes, -1)], -1)
