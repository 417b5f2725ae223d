"""A row of tokens instead of a grid: learned queries read the picture (TiTok, One-D-Piece).

1. Patches and `count` learned queries go through one transformer in which all see all; what the queries have become are
   the latents, in their order.
2. The quantizer gives each its codes; they are the tokens.
3. The decoder sees the latents, each with its own learned position, and one mask vector for each patch, and draws the
   patches at the mask vectors.
4. The decoder takes any number of latents from the first on, without filling: with `change: {type: uniform_tail}` or
   `nested` in training, the first tokens carry most and a sample can be cut anywhere. n tokens cost n * log2(K) bits.

Deliberately absent: the first stage of the papers, which predicts the codes of a pretrained tokenizer. Sources: Yu et al.
2024, TiTok, https://arxiv.org/abs/2406.07550, section 3; Miwa et al. 2025, One-D-Piece, https://arxiv.org/abs/2501.10064.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import (
    Adversary,
    ImageFormat,
    LatentChange,
    Quantizer,
    ReconstructionLoss,
    SequenceShape,
    TokenSpec,
)
from components.registry import ComponentError, Spec
from components.tokenizers._images import SQUARED_ABSOLUTE, ImageTokenizer
from components.tokenizers._tokens import check_codes
from components.tokenizers._vit import Everyone, Patches, Pixels


class Query(ImageTokenizer):
    """Images [B, C, S, S] <-> tokens [B, count * codes]; `decode` also takes the first so many of them.

    >>> from components.registry import resolve
    >>> vq = resolve(Quantizer, {"type": "vq", "codebook_size": 64})
    >>> query = Query(ImageFormat(16, 1), quantizer=vq, count=8, depth=1, width=32, heads=2)
    >>> query.decode(query.encode(torch.zeros(3, 1, 16, 16))[:, :5]).shape
    torch.Size([3, 1, 16, 16])
    """

    def __init__(
        self,
        image: ImageFormat,
        *,
        quantizer: Spec[Quantizer],
        count: Annotated[int, Field(ge=1, description="latents of a picture")] = 32,
        patch: Annotated[int, Field(ge=1)] = 4,
        depth: Annotated[int, Field(ge=1)] = 4,
        width: Annotated[int, Field(ge=8)] = 128,
        heads: Annotated[int, Field(ge=1)] = 4,
        dim: Annotated[int, Field(ge=1, description="width of a latent")] = 12,
        losses: list[Spec[ReconstructionLoss]] = SQUARED_ABSOLUTE,
        adversary: Spec[Adversary] | None = None,
        change: Spec[LatentChange] | None = None,
    ) -> None:
        if image.size % patch:
            raise ComponentError(f"{patch} does not divide the image size {image.size}", ("patch",))
        super().__init__(image, losses, adversary, change, any_length=True)
        side = image.size // patch
        shape = SequenceShape(side * side, count, (side, side))
        self.patches = Patches(image.channels, patch, width)
        self.queries, self.positions = (nn.Parameter(0.02 * torch.randn(count, width)) for _ in range(2))
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.encoder, self.down = Everyone(shape, depth, width, heads), nn.Linear(width, dim)
        self.quantizer = quantizer.build(dim)
        self.up, self.decoder = nn.Linear(dim, width), Everyone(shape, depth, width, heads)
        self.pixels = Pixels(image.channels, patch, width, side)
        self.spec = TokenSpec(self.quantizer.codebook_sizes, count, "sequence")

    def latents(self, images: Tensor) -> Tensor:
        patches = self.patches(images)
        queries = self.queries.expand(len(images), -1, -1)
        return self.down(self.encoder.with_first(queries, patches)[:, : len(self.queries)])

    def draw(self, latents: Tensor) -> Tensor:
        first = self.up(latents) + self.positions[: latents.shape[1]]
        masks = self.mask.expand(len(latents), self.pixels.shape[2] ** 2, -1)
        return self.pixels(self.decoder.with_first(first, masks)[:, latents.shape[1] :])

    def last_weights(self) -> Tensor:
        return self.pixels.project.weight

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        codes = self.spec.codes
        if tokens.ndim != 2 or tokens.shape[1] > self.spec.length or tokens.shape[1] % codes or not tokens.shape[1]:
            raise ValueError(
                f"expected tokens [B, at most {self.spec.length}, whole positions of {codes}], got {list(tokens.shape)}"
            )
        parts = tokens.unflatten(1, (-1, codes))
        check_codes(parts, self.spec.codebook_sizes)
        return self.draw(self.quantizer.decode(parts)).clamp(-1, 1)

    def bits(self, count: int) -> float:
        """What the first `count` latents of a picture cost."""
        return count * sum(math.log2(size) for size in self.spec.codebook_sizes)
