"""MoVQ with layers over time, as Emu3 has it, for pictures.

1. VQGAN's encoder (`_vqgan.py`). Its latents stand for 2^n equal frames; n convolutions over time halve them to one
   frame, and residual blocks and a convolution follow (`_movq.py`).
2. The quantizer gives every latent its codes; in raster order they are the tokens.
3. Quantized latents go through a convolution, and both they and the result through residual blocks and n doublings in
   time, with the same weights; of the frames only the first is drawn. No layer looks ahead, so the other frames are
   never made.
4. VQGAN's decoder draws the result, and all its norms are scaled and shifted by the latents, place by place.
5. Norms over batches keep the statistics they have (0 and 1 in a new model), in training as well. Of a new model,
   layers over time hand on what they get, and norms are not yet moved by the latents.

With n = 0 nothing is repeated: what is left of time is one slice of kernels. Deliberately absent: videos; of the
kernels that keep the number of frames, training moves the one slice that pictures use. Sources: Zheng et al. 2022,
https://arxiv.org/abs/2209.09002; Emu3, https://arxiv.org/abs/2409.18869, section 2.2.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Adversary, ImageFormat, LatentChange, Quantizer, ReconstructionLoss, TokenSpec
from components.registry import ComponentError, Spec
from components.tokenizers._images import SQUARED_ABSOLUTE, ImageTokenizer
from components.tokenizers._movq import CausalConv, Fold, SpatialNorm, Unfold
from components.tokenizers._vqgan import Decoder, Encoder


class MoVQ(ImageTokenizer):
    """Images [B, C, S, S] <-> tokens [B, (S / 2^m)^2 * codes], m one less than there are multipliers.

    >>> from components.registry import resolve
    >>> vq = resolve(Quantizer, {"type": "vq", "codebook_size": 64})
    >>> made = MoVQ(ImageFormat(16, 1), quantizer=vq, base=32, multipliers=(1, 1), blocks=1, attention=(1,), dim=4)
    >>> made.encode(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 64])
    """

    def __init__(
        self,
        image: ImageFormat,
        *,
        quantizer: Spec[Quantizer],
        base: Annotated[int, Field(ge=32, multiple_of=32)] = 128,
        multipliers: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 2, 4),
        blocks: Annotated[int, Field(ge=1)] = 2,
        attention: tuple[int, ...] = (3,),
        dim: Annotated[int, Field(ge=1, description="width of a code")] = 4,
        halvings: Annotated[int, Field(ge=0, le=6, description="of time: a picture stands for 2^n frames")] = 2,
        losses: list[Spec[ReconstructionLoss]] = SQUARED_ABSOLUTE,
        adversary: Spec[Adversary] | None = None,
        change: Spec[LatentChange] | None = None,
    ) -> None:
        smaller = len(multipliers) - 1
        if image.size % 2**smaller:
            raise ComponentError(f"{smaller} halvings do not divide the image size {image.size}", ("multipliers",))
        super().__init__(image, losses, adversary, change, any_length=False)
        self.encoder = Encoder(image.channels, base, multipliers, blocks, attention, dim)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # what convolutions read fastest
        self.fold, self.unfold = Fold(dim, halvings, blocks), Unfold(dim, halvings, blocks)
        self.quant_conv, self.post_quant_conv = (CausalConv(dim, 3, 1).passing(1.0) for _ in range(2))
        self.quantizer = quantizer.build(dim)
        norm = partial(SpatialNorm, dim)
        self.decoder = Decoder(image.channels, base, multipliers, blocks, attention, dim, norm)
        side = image.size // 2**smaller
        self.spec = TokenSpec(self.quantizer.codebook_sizes, side * side, "grid", (side, side))

    def latents(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return self.quant_conv.first(self.fold(self.encoder(images))).flatten(2).transpose(1, 2)

    def draw(self, latents: Tensor) -> Tensor:
        quantized = latents.transpose(1, 2).unflatten(2, self.spec.grid)  # [B, D, h, w]
        hidden, guide = self.unfold(torch.cat([self.post_quant_conv.first(quantized), quantized])).chunk(2)
        return self.decoder(hidden, guide)

    def last_weights(self) -> Tensor:
        return self.decoder.conv_out.weight
