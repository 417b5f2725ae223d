"""VQGAN as published: the architecture that Chameleon, Janus, LlamaGen and others took over, for their weights and for one's own.

1. Encoder with attention at chosen resolutions, a 1x1 convolution to the codebook's width, quantizer, a 1x1 convolution back,
   decoder (`_vqgan.py`).
2. Tokens in raster order. Losses are those of any image tokenizer here; by default L1 and L2, and a PatchGAN where asked for.
3. `unit_latents`: the decoder sees quantized latents on the unit sphere, as Janus does.

`grid` is the small sister without attention. Deliberately absent: pictures that are not square. Source: Esser et al. 2021,
https://arxiv.org/abs/2012.09841.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.interfaces import Adversary, ImageFormat, LatentChange, Quantizer, ReconstructionLoss, TokenSpec
from components.registry import ComponentError, Spec
from components.tokenizers._images import SQUARED_ABSOLUTE, ImageTokenizer
from components.tokenizers._vqgan import Decoder, Encoder


class VQGAN(ImageTokenizer):
    """Images [B, C, S, S] <-> tokens [B, (S / 2^n)^2 * codes], n one less than there are multipliers.

    >>> from components.registry import resolve
    >>> vq = resolve(Quantizer, {"type": "vq", "codebook_size": 64})
    >>> made = VQGAN(ImageFormat(16, 1), quantizer=vq, base=32, multipliers=(1, 1), blocks=1, attention=(1,), latent=8, dim=4)
    >>> made.encode(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 64])
    """

    def __init__(
        self,
        image: ImageFormat,
        *,
        quantizer: Spec[Quantizer],
        base: Annotated[int, Field(ge=32, multiple_of=32)] = 128,
        multipliers: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 1, 2, 2, 4),
        blocks: Annotated[int, Field(ge=1)] = 2,
        attention: tuple[int, ...] = (4,),
        latent: Annotated[int, Field(ge=1, description="channels between encoder and quantizer")] = 256,
        dim: Annotated[int, Field(ge=1, description="width of a code")] = 256,
        unit_latents: bool = False,
        losses: list[Spec[ReconstructionLoss]] = SQUARED_ABSOLUTE,
        adversary: Spec[Adversary] | None = None,
        change: Spec[LatentChange] | None = None,
    ) -> None:
        halvings = len(multipliers) - 1
        if image.size % 2**halvings:
            raise ComponentError(f"{halvings} halvings do not divide the image size {image.size}", ("multipliers",))
        super().__init__(image, losses, adversary, change, any_length=False)
        self.encoder = Encoder(image.channels, base, multipliers, blocks, attention, latent)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # what convolutions read fastest
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, dim, 1), nn.Conv2d(dim, latent, 1)
        self.quantizer = quantizer.build(dim)
        self.decoder = Decoder(image.channels, base, multipliers, blocks, attention, latent)
        self.unit_latents = unit_latents
        side = image.size // 2**halvings
        self.spec = TokenSpec(self.quantizer.codebook_sizes, side * side, "grid", (side, side))

    def latents(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(images)).flatten(2).transpose(1, 2)

    def draw(self, latents: Tensor) -> Tensor:
        latents = F.normalize(latents, dim=-1) if self.unit_latents else latents
        return self.decoder(self.post_quant_conv(latents.transpose(1, 2).unflatten(2, self.spec.grid)))

    def last_weights(self) -> Tensor:
        return self.decoder.conv_out.weight
