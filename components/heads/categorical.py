"""One softmax over the whole vocabulary: a linear layer from the hidden state, trained by cross-entropy.

Deliberately absent: weight tying (a visual code's place in the input need not be its place in the output, and LlamaGen
does not tie either), label smoothing, a bias.
"""

from __future__ import annotations

import torch  # noqa: F401 - the docstring example uses it
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Head, TokenSpec


class Categorical(Head):
    """
    >>> head = Categorical(32, TokenSpec(vocabulary=100, length=16, layout="sequence"))
    >>> head(torch.zeros(2, 16, 32)).shape
    torch.Size([2, 16, 100])
    """

    def __init__(self, width: int, spec: TokenSpec) -> None:
        super().__init__()
        self.project = nn.Linear(width, spec.vocabulary, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.project(hidden)

    def loss(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = self(hidden).float()  # [B, L, V]; in half precision the log-sum-exp would lose what training needs
        return F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)
