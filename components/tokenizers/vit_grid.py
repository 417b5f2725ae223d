"""A grid of tokens by vision transformers (ViT-VQGAN).

1. The picture is cut into patches; a transformer in which every patch sees every other, with rotary positions by row and
   column, makes one vector a patch; a linear map brings it to the latent's width.
2. The quantizer gives every latent its codes; in raster order they are the tokens.
3. A transformer of the same size and a linear map draw each latent's patch.
4. Losses are those of any image tokenizer here.

Deliberately absent: pretrained encoders, a convolution after the patches. Source: Yu et al. 2021,
https://arxiv.org/abs/2110.04627, section 3.
"""

from __future__ import annotations

from typing import Annotated

import torch  # noqa: F401 - the docstring example uses it
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
from components.tokenizers._vit import Everyone, Patches, Pixels


class ViTGrid(ImageTokenizer):
    """Images [B, C, S, S] <-> tokens [B, (S / patch)^2 * codes].

    >>> from components.registry import resolve
    >>> vq = resolve(Quantizer, {"type": "vq", "codebook_size": 64})
    >>> ViTGrid(ImageFormat(16, 1), quantizer=vq, depth=1, width=32, heads=2).encode(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        image: ImageFormat,
        *,
        quantizer: Spec[Quantizer],
        patch: Annotated[int, Field(ge=1)] = 4,
        depth: Annotated[int, Field(ge=1)] = 4,
        width: Annotated[int, Field(ge=8)] = 128,
        heads: Annotated[int, Field(ge=1)] = 4,
        dim: Annotated[int, Field(ge=1, description="width of a latent")] = 16,
        losses: list[Spec[ReconstructionLoss]] = SQUARED_ABSOLUTE,
        adversary: Spec[Adversary] | None = None,
        change: Spec[LatentChange] | None = None,
    ) -> None:
        if image.size % patch:
            raise ComponentError(f"{patch} does not divide the image size {image.size}", ("patch",))
        super().__init__(image, losses, adversary, change, any_length=False)
        side = image.size // patch
        shape = SequenceShape(side * side, grid=(side, side))
        self.patches = Patches(image.channels, patch, width)
        self.encoder, self.down = Everyone(shape, depth, width, heads), nn.Linear(width, dim)
        self.quantizer = quantizer.build(dim)
        self.up, self.decoder = nn.Linear(dim, width), Everyone(shape, depth, width, heads)
        self.pixels = Pixels(image.channels, patch, width, side)
        self.spec = TokenSpec(self.quantizer.codebook_sizes, side * side, "grid", (side, side))

    def latents(self, images: Tensor) -> Tensor:
        return self.down(self.encoder(self.patches(images)))

    def draw(self, latents: Tensor) -> Tensor:
        return self.pixels(self.decoder(self.up(latents)))

    def last_weights(self) -> Tensor:
        return self.pixels.project.weight
