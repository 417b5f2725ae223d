"""A class: one learned vector each, and one for no class at all (the null class of guidance, label K).

Source: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598. Deliberately absent: several labels of one sample.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from components.interfaces import Conditioner


class ClassLabel(Conditioner):
    """Labels [B] int64 in [0, K] -> [B, 1, W]

    >>> label = ClassLabel(10)
    >>> label.attach(32)
    >>> label(torch.tensor([3, 10])).shape
    torch.Size([2, 1, 32])
    """

    key: ClassVar[str] = "labels"
    length = 1

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def attach(self, width: int) -> None:
        self.embedding = nn.Embedding(self.classes + 1, width)

    def initialize(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, condition: Tensor) -> Tensor:
        return self.embedding(condition)[:, None]

    def null(self, condition: Tensor) -> Tensor:
        return torch.full_like(condition, self.classes)

    def check(self, condition: Tensor) -> None:
        if condition.ndim != 1:
            raise ValueError(f"expected labels [B], got {list(condition.shape)}")
        if len(condition) and not 0 <= int(condition.min()) <= int(condition.max()) <= self.classes:
            raise ValueError(f"labels must be in [0, {self.classes}], got {condition.unique().tolist()}")
