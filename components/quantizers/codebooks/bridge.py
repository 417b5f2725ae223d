"""A codebook that is the output of a network over all raw codes at once (VQBridge, FVQ).

1. The raw table [K, D], learned, is laid out as an image of side sqrt(K) with D channels.
2. Compress: p x p patches become tokens of `width`. Process: ViT blocks (attention over all tokens, no positions).
   Recover: norm and a linear layer back to p x p x D, starting at zero: at first all codes are equal.
3. That output is the codebook, in the search, in the losses and in decoding; both raw table and network learn from
   |sg(z) - e|^2, so a code that nobody chooses moves as well.
4. After training `plain()` is an ordinary table with the same codes.

Deliberately absent: a residual connection around the network, normalization of codes, revival. Source: Chang et al. 2025,
FVQ, https://arxiv.org/abs/2509.10140, section 3.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Codebook
from components.registry import ComponentError


class _Block(nn.Module):
    """Pre-norm attention and MLP of ratio 2, [1, tokens, W]"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class Bridge(Codebook):
    """`patch` must divide the side sqrt(K); K must be a square.

    >>> Bridge(64, 4, patch=4, width=16, heads=2).table().shape
    torch.Size([64, 4])
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        patch: Annotated[int, Field(ge=1)] = 4,
        width: Annotated[int, Field(ge=8)] = 256,
        depth: Annotated[int, Field(ge=1)] = 2,
        heads: Annotated[int, Field(ge=1)] = 4,
        weight: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        super().__init__()
        side = math.isqrt(size)
        if side * side != size:
            raise ComponentError(
                f"must be a square so that its codes can be laid out as an image, got {size}; {side**2} and "
                f"{(side + 1) ** 2} are the nearest",
                ("codebook_size",),
            )
        if side % patch:
            raise ComponentError(f"must divide the side of the codebook, {side}, got {patch}", ("codebook", "patch"))
        if width % heads:
            raise ComponentError(f"must be a multiple of heads ({heads}), got {width}", ("codebook", "width"))
        self.side, self.patch, self.weight = side, patch, weight
        self.raw = nn.Parameter(torch.randn(size, dim))
        self.compress = nn.Conv2d(dim, width, patch, patch)
        self.process = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm, self.recover = nn.LayerNorm(width), nn.Linear(width, patch * patch * dim)
        nn.init.zeros_(self.recover.weight)
        nn.init.zeros_(self.recover.bias)

    def table(self) -> Tensor:
        image = self.raw.T.unflatten(1, (self.side, self.side))[None]  # [1, D, side, side]
        tokens = self.compress(image).flatten(2).transpose(1, 2)  # [1, (side / p)^2, W]
        patches = self.recover(self.norm(self.process(tokens)))  # [1, (side / p)^2, p * p * D]
        count = self.side // self.patch
        grid = patches.view(count, count, self.patch, self.patch, -1)
        return grid.transpose(1, 2).reshape(self.side * self.side, -1)

    @torch.no_grad()
    def plain(self) -> Tensor:
        """The codes as an ordinary table [K, D], once training is over."""
        return self.table().clone()

    def losses(self, latents: Tensor, quantized: Tensor) -> dict[str, Tensor]:
        return {"codebook": self.weight * F.mse_loss(quantized, latents.detach())}

    def fill(self, latents: Tensor) -> None:
        """All codes start equal."""

    def update(self, latents: Tensor, codes: Tensor, counts: Tensor) -> None:
        """The optimizer moves table and network."""

    def replace(self, which: Tensor, latents: Tensor, count: Tensor) -> None:
        raise ValueError("codes of a bridge cannot be revived one by one; leave out quantizer.revival")
