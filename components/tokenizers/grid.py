"""A grid of tokens: convolutional encoder, quantizer, decoder (the VQ-VAE / VQGAN family, arXiv:1711.00937, 2012.09841).

1. The encoder halves the picture until each latent stands for `downsample` x `downsample` pixels.
2. The quantizer gives every latent its codes; in raster order, all codes of a latent one after another, they are the tokens.
3. The decoder draws the picture from the quantized latents.
4. Trained on reconstruction losses (by default absolute plus squared error), the quantizer's own, and an adversary's.

Deliberately absent: attention at low resolutions.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch  # noqa: F401 - the docstring example uses it
from pydantic import Field
from torch import Tensor

from components.interfaces import Adversary, ImageFormat, LatentChange, Quantizer, ReconstructionLoss, TokenSpec
from components.registry import ComponentError, Spec
from components.tokenizers._conv import Decoder, Encoder
from components.tokenizers._images import SQUARED_ABSOLUTE, ImageTokenizer


class Grid(ImageTokenizer):
    """Images [B, C, S, S] <-> tokens [B, (S / downsample)^2 * codes].

    >>> from components.registry import resolve
    >>> grid = Grid(ImageFormat(16, 1), quantizer=resolve(Quantizer, {"type": "vq", "codebook_size": 64}))
    >>> grid.encode(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        image: ImageFormat,
        *,
        quantizer: Spec[Quantizer],
        downsample: Literal[2, 4, 8, 16, 32] = 4,
        width: Annotated[int, Field(ge=8, multiple_of=8)] = 32,
        blocks: Annotated[int, Field(ge=1)] = 1,
        dim: Annotated[int, Field(ge=1, description="width of a latent")] = 16,
        losses: list[Spec[ReconstructionLoss]] = SQUARED_ABSOLUTE,
        adversary: Spec[Adversary] | None = None,
        change: Spec[LatentChange] | None = None,
    ) -> None:
        if image.size % downsample:
            raise ComponentError(f"{downsample} does not divide the image size {image.size}", ("downsample",))
        super().__init__(image, losses, adversary, change, any_length=False)
        halvings = int(math.log2(downsample))
        self.encoder = Encoder(image.channels, width, halvings, blocks, dim)
        self.quantizer = quantizer.build(dim)
        self.decoder = Decoder(image.channels, width, halvings, blocks, dim)
        side = image.size // downsample
        self.spec = TokenSpec(self.quantizer.codebook_sizes, side**2, "grid", (side, side))

    def latents(self, images: Tensor) -> Tensor:
        return self.encoder(images).flatten(2).transpose(1, 2)  # [B, N, D]

    def draw(self, latents: Tensor) -> Tensor:
        return self.decoder(latents.transpose(1, 2).unflatten(2, self.spec.grid))

    def last_weights(self) -> Tensor:
        return self.decoder.last.weight
