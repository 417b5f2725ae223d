"""A picture, cut into patches: one vector a patch, by a linear layer and a learned position each.

The null condition is a learned vector at every position, asked for by a picture of NaN. Deliberately absent: a frozen
vision encoder in front. Source: patch embedding, Dosovitskiy et al. 2021, ViT, https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import Conditioner
from components.registry import ComponentError


class Image(Conditioner):
    """Images [B, channels, size, size] in [-1, 1], or NaN for none -> [B, (size / patch)^2, W]

    >>> image = Image(0, size=16, patch=8)
    >>> image.attach(32)
    >>> image(torch.zeros(2, 1, 16, 16)).shape
    torch.Size([2, 4, 32])
    """

    key: ClassVar[str] = "condition_images"

    def __init__(
        self,
        classes: int,
        *,
        size: Annotated[int, Field(ge=1)] = 16,
        channels: Literal[1, 3] = 1,
        patch: Annotated[int, Field(ge=1)] = 4,
    ) -> None:
        super().__init__()
        if size % patch:
            raise ComponentError(f"must divide the size {size}, got {patch}", ("patch",))
        self.format, self.patch, self.length = (channels, size, size), patch, (size // patch) ** 2

    def attach(self, width: int) -> None:
        self.project = nn.Conv2d(self.format[0], width, self.patch, self.patch)
        self.positions = nn.Parameter(torch.zeros(self.length, width))
        self.nothing = nn.Parameter(torch.zeros(width))

    def initialize(self) -> None:
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.nothing, std=0.02)

    def forward(self, condition: Tensor) -> Tensor:
        absent = condition.isnan().flatten(1).all(1)[:, None, None]
        patches = self.project(condition.nan_to_num()).flatten(2).transpose(1, 2)
        return torch.where(absent, self.nothing, patches) + self.positions

    def null(self, condition: Tensor) -> Tensor:
        return torch.full_like(condition, torch.nan)

    def check(self, condition: Tensor) -> None:
        if tuple(condition.shape[1:]) != self.format or condition.ndim != 4:
            raise ValueError(f"expected images [B, {', '.join(map(str, self.format))}], got {list(condition.shape)}")
