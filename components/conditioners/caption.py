"""A caption, read as bytes by a small bidirectional transformer.

1. The UTF-8 bytes of a caption, cut or filled with zeros to `length`, are embedded; zero is "nothing here".
2. A transformer in which every byte sees every other makes one vector a byte; a linear layer brings it to the width.
3. The null condition is the empty caption.

Deliberately absent: pretrained text encoders, subwords (a caption here is a name of a few dozen bytes), a mask of the
filling (the network sees zeros and learns what they mean). Source: byte-level encoding, Xue et al. 2022, ByT5,
https://arxiv.org/abs/2105.13626; text as prefix of image tokens: Sun et al. 2024, LlamaGen,
https://arxiv.org/abs/2406.06525, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import Backbone, Conditioner, SequenceShape, Visible
from components.registry import Spec, resolve

ENCODER = resolve(Backbone, {"type": "transformer", "depth": 2, "width": 128, "heads": 4})


class Caption(Conditioner):
    """Captions [B, length] int64, bytes filled with zeros -> [B, length, W]

    >>> caption = Caption(0, length=8)
    >>> caption.attach(32)
    >>> caption(caption.of(["LATIN A", "ß"])).shape
    torch.Size([2, 8, 32])
    """

    key: ClassVar[str] = "captions"

    def __init__(
        self, classes: int, *, length: Annotated[int, Field(ge=1)] = 48, encoder: Spec[Backbone] = ENCODER
    ) -> None:
        super().__init__()
        self.length = length
        self.encoder = encoder.build(SequenceShape(length))
        self.embedding = nn.Embedding(256, self.encoder.width)

    def of(self, captions: Sequence[str]) -> Tensor:
        """Texts -> [B, length]; what is longer is cut."""
        rows = torch.zeros(len(captions), self.length, dtype=torch.int64)
        for row, text in zip(rows, captions, strict=True):
            data = text.encode()[: self.length]
            row[: len(data)] = torch.tensor(list(data))
        return rows

    def attach(self, width: int) -> None:
        self.project = nn.Linear(self.encoder.width, width, bias=False)

    def initialize(self) -> None:
        for part in (self.embedding, self.project):
            nn.init.normal_(part.weight, std=0.02)

    def forward(self, condition: Tensor) -> Tensor:
        return self.project(self.encoder(self.embedding(condition), mask=Visible.ALL))

    def null(self, condition: Tensor) -> Tensor:
        return torch.zeros_like(condition)

    def check(self, condition: Tensor) -> None:
        if condition.ndim != 2 or condition.shape[1] != self.length:
            raise ValueError(f"expected captions [B, {self.length}] as bytes, got {list(condition.shape)}")
        if condition.numel() and not 0 <= int(condition.min()) <= int(condition.max()) < 256:
            raise ValueError(f"bytes must be in [0, 256), got {int(condition.min())}..{int(condition.max())}")
