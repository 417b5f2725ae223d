"""A grid of tokens: convolutional encoder, quantizer, decoder (the VQ-VAE / VQGAN family, arXiv:1711.00937, 2012.09841).

Mechanism: 1. the encoder halves the picture until each latent stands for `downsample` x `downsample` pixels; 2. the
quantizer gives every latent its codes; 3. codes in raster order are the tokens, all codes of a latent one after another;
4. the decoder draws the picture from the quantized latents; 5. trained on absolute plus squared
error and the quantizer's own losses. Deliberately absent: perceptual and adversarial losses.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.interfaces import ImageFormat, Quantizer, Tokenizer, TokenSpec
from components.registry import ComponentError, Spec
from components.tokenizers._conv import Decoder, Encoder
from components.tokenizers._tokens import to_codes, to_tokens


class Grid(Tokenizer):
    """Images [B, C, S, S] <-> tokens [B, (S / downsample)^2].

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
        squared_weight: Annotated[float, Field(ge=0)] = 1.0,
        absolute_weight: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        super().__init__()
        if image.size % downsample:
            raise ComponentError(f"{downsample} does not divide the image size {image.size}", ("downsample",))
        self.image, self.squared_weight, self.absolute_weight = image, squared_weight, absolute_weight
        halvings = int(math.log2(downsample))
        self.encoder = Encoder(image.channels, width, halvings, blocks, dim)
        self.quantizer = quantizer.build(dim)
        self.decoder = Decoder(image.channels, width, halvings, blocks, dim)
        side = image.size // downsample
        self.spec = TokenSpec(self.quantizer.codebook_sizes, side**2, "grid", (side, side))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = batch["images"]
        quantized = self.quantizer(self._latents(images))
        drawn = self._draw(quantized.latents)
        squared, absolute = F.mse_loss(drawn, images), F.l1_loss(drawn, images)
        loss = self.squared_weight * squared + self.absolute_weight * absolute + sum(quantized.losses.values())
        return {"loss": loss, "squared_error": squared, "absolute_error": absolute, **quantized.losses}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return to_tokens(self.quantizer(self._latents(images)).codes)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        return self._draw(self.quantizer.decode(to_codes(tokens, self.spec))).clamp(-1, 1)

    def before_step(self, step: int) -> None:
        self.quantizer.before_step(step)

    def after_step(self, step: int) -> None:
        self.quantizer.after_step(step)

    def _latents(self, images: Tensor) -> Tensor:
        expected = (self.image.channels, self.image.size, self.image.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"expected images [B, {', '.join(map(str, expected))}], got {list(images.shape)}")
        return self.encoder(images).flatten(2).transpose(1, 2)  # [B, N, D]

    def _draw(self, latents: Tensor) -> Tensor:
        return self.decoder(latents.transpose(1, 2).unflatten(2, self.spec.grid))
