"""Small random rotations, scalings and shifts, one per picture, bilinear; what leaves the frame is filled with black."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import Transform


class RandomAffine(Transform):
    """`degrees` to either side, `scale` as a share, `shift` as a share of the side."""

    def __init__(
        self,
        *,
        degrees: Annotated[float, Field(ge=0, le=180)] = 10.0,
        scale: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        shift: Annotated[float, Field(ge=0, lt=1)] = 0.08,
    ) -> None:
        self.degrees, self.scale, self.shift = degrees, scale, shift

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        n = len(images)
        if not n:
            return images
        angle, scale, dx, dy = torch.rand(4, n, generator=rng).mul_(2).sub_(1)
        angle, scale = angle * math.radians(self.degrees), 1 + scale * self.scale
        cos, sin = angle.cos() * scale, angle.sin() * scale
        # grid_sample's frame is [-1, 1]: a shift of the whole side is 2
        theta = torch.stack([cos, -sin, 2 * self.shift * dx, sin, cos, 2 * self.shift * dy], 1).view(n, 2, 3)
        places = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images + 1, places, padding_mode="zeros", align_corners=False) - 1
