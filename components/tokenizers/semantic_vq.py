"""Semantic VQ: the features of a vision transformer that understands pictures, quantized (X-Omni, GLM-Image).

1. Pictures are normalized as the transformer knows them, channel by channel, and cut into patches; a
   transformer like SigLIP 2's, with learned positions stretched to the grid, makes one vector a patch (`_siglip.py`).
2. A linear map brings it to the code's width; the quantizer gives it its codes, in raster order the tokens. Published
   models compare cosines (`quantizer: {type: vq, assignment: {type: cosine}}`).
3. A linear map brings codes back to the transformer's width.
4. Published models draw with a diffusion model of billions of parameters. Here a transformer with rotary positions and
   a linear map draw each latent's patch (`_vit.py`), with the losses of any image tokenizer.

Deliberately absent: the diffusion decoder, the losses by which a language model teaches the transformer, pictures that
are not square. Sources: Geng et al. 2025, https://arxiv.org/abs/2507.22058; GLM-Image, https://z.ai/blog/glm-image.
"""

from __future__ import annotations

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
from components.tokenizers._siglip import Approximation, SigLIP
from components.tokenizers._vit import Everyone, Pixels


class SemanticVQ(ImageTokenizer):
    """Images [B, C, S, S] <-> tokens [B, (S / patch)^2 * codes].

    `mean` and `deviation` are of pixels in [0, 1], one for all channels or one for each. `positions` is the side of the
    square for which positions are learned.

    >>> from components.registry import resolve
    >>> vq = resolve(Quantizer, {"type": "vq", "codebook_size": 64, "assignment": {"type": "cosine"}})
    >>> made = SemanticVQ(ImageFormat(16, 1), quantizer=vq, patch=4, depth=1, width=32, heads=2, hidden=64)
    >>> made.encode(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 16])
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        image: ImageFormat,
        *,
        quantizer: Spec[Quantizer],
        patch: Annotated[int, Field(ge=1)] = 16,
        depth: Annotated[int, Field(ge=1)] = 12,
        width: Annotated[int, Field(ge=8)] = 768,
        heads: Annotated[int, Field(ge=1)] = 12,
        hidden: Annotated[int, Field(ge=1, description="width inside the MLPs")] = 3072,
        gelu: Approximation = "none",
        positions: Annotated[int, Field(ge=1)] = 16,
        mean: Annotated[tuple[float, ...], Field(min_length=1)] = (0.5,),
        deviation: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.5,),
        dim: Annotated[int, Field(ge=1, description="width of a code")] = 16,
        decoder_depth: Annotated[int, Field(ge=1)] = 4,
        losses: list[Spec[ReconstructionLoss]] = SQUARED_ABSOLUTE,
        adversary: Spec[Adversary] | None = None,
        change: Spec[LatentChange] | None = None,
    ) -> None:
        if image.size % patch:
            raise ComponentError(f"{patch} does not divide the image size {image.size}", ("patch",))
        for name, given in (("mean", mean), ("deviation", deviation)):
            if len(given) not in (1, image.channels):
                raise ComponentError(f"expected 1 number or {image.channels}, got {len(given)}", (name,))
        super().__init__(image, losses, adversary, change, any_length=False)
        side = image.size // patch
        # Of images in [-1, 1]: (x - (2 mean - 1)) / (2 deviation).
        self.register_buffer("mean", 2 * torch.tensor(mean).view(-1, 1, 1) - 1, persistent=False)
        self.register_buffer("scale", 0.5 / torch.tensor(deviation).view(-1, 1, 1), persistent=False)
        self.encoder = SigLIP(
            image.channels,
            side,
            patch=patch,
            depth=depth,
            width=width,
            heads=heads,
            hidden=hidden,
            positions=positions,
            approximate=gelu,
        )
        self.down, self.quantizer, self.up = nn.Linear(width, dim), quantizer.build(dim), nn.Linear(dim, width)
        self.decoder = Everyone(SequenceShape(side * side, grid=(side, side)), decoder_depth, width, heads)
        self.pixels = Pixels(image.channels, patch, width, side)
        self.spec = TokenSpec(self.quantizer.codebook_sizes, side * side, "grid", (side, side))

    def latents(self, images: Tensor) -> Tensor:
        return self.down(self.encoder((images - self.mean) * self.scale))

    def draw(self, latents: Tensor) -> Tensor:
        return self.pixels(self.decoder(self.up(latents)))

    def last_weights(self) -> Tensor:
        return self.pixels.project.weight
