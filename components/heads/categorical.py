"""One softmax over the whole vocabulary: a linear layer from the hidden state, trained by cross-entropy.

Deliberately absent: weight tying (a visual code's place in the input need not be its place in the output, and LlamaGen
does not tie either), label smoothing, a bias; positions of several codes (`factorised`, `channel_autoregressive`).
"""

from __future__ import annotations

import torch  # noqa: F401 - the docstring example uses it
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Draw, Head, TokenSpec
from components.registry import ComponentError


class Categorical(Head):
    """
    >>> head = Categorical(32, TokenSpec((100,), 16, "sequence"))
    >>> head(torch.zeros(2, 16, 32)).shape
    torch.Size([2, 16, 100])
    """

    def __init__(self, width: int, spec: TokenSpec) -> None:
        super().__init__()
        if spec.codes != 1:
            raise ComponentError(
                f"one softmax is for positions of one code; these have {spec.codes}: choose 'factorised' or "
                "'channel_autoregressive'",
                ("type",),
            )
        self.project = nn.Linear(width, spec.vocabulary, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., W] -> logits [..., V]"""
        return self.project(hidden)

    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        logits = self(hidden).float()  # [..., V]; in half precision the log-sum-exp would lose what training needs
        return F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none").view(codes.shape)

    def sample(self, hidden: Tensor, draw: Draw) -> Tensor:
        return draw(self(hidden))[:, None]
