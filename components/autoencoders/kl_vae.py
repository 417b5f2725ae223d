"""A continuous autoencoder whose latents are nearly standard normal (KL-VAE of latent diffusion).

1. A convolutional encoder gives mean and log-variance of each latent; training draws from that Gaussian.
2. The loss is the reconstruction's plus `kl_weight` times KL(N(mean, var) | N(0, 1)), summed over a latent, averaged over
   latents and images.
3. `encode` gives the mean, divided by the standard deviation of latents measured while training (a moving average over
   all channels): what a generator or a quantizer then works with has about unit variance. `decode` undoes that.

Deliberately absent: attention at low resolutions. Sources: Kingma and Welling 2013, https://arxiv.org/abs/1312.6114;
Rombach et al. 2022, https://arxiv.org/abs/2112.10752, section 3.1 and appendix G (scaling).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import (
    Adversary,
    Autoencoder,
    ImageFormat,
    LatentSpec,
    Networks,
    ReconstructionLoss,
)
from components.registry import ComponentError, Spec
from components.tokenizers._conv import Decoder, Encoder
from components.tokenizers._images import SQUARED_ABSOLUTE, Judged
from components.training import distributed


class KLVAE(Autoencoder):
    """Images [B, C, S, S] <-> latents [B, (S / downsample)^2, dim].

    >>> vae = KLVAE(ImageFormat(16, 1), width=8, dim=4)
    >>> vae.encode(torch.zeros(3, 1, 16, 16)).shape
    torch.Size([3, 16, 4])
    """

    training_only: ClassVar[tuple[str, ...]] = ("judged",)
    deviation: Tensor  # [] of the latents' means, a moving average

    def __init__(
        self,
        image: ImageFormat,
        *,
        downsample: Literal[2, 4, 8, 16, 32] = 4,
        width: Annotated[int, Field(ge=8, multiple_of=8)] = 32,
        blocks: Annotated[int, Field(ge=1)] = 1,
        dim: Annotated[int, Field(ge=1, description="width of a latent")] = 16,
        kl_weight: Annotated[float, Field(ge=0)] = 1e-6,
        losses: list[Spec[ReconstructionLoss]] = SQUARED_ABSOLUTE,
        adversary: Spec[Adversary] | None = None,
    ) -> None:
        super().__init__()
        if image.size % downsample:
            raise ComponentError(f"{downsample} does not divide the image size {image.size}", ("downsample",))
        self.image, self.kl_weight = image, kl_weight
        halvings, side = int(math.log2(downsample)), image.size // downsample
        self.encoder = Encoder(image.channels, width, halvings, blocks, 2 * dim)
        self.decoder = Decoder(image.channels, width, halvings, blocks, dim)
        self.judged = Judged(image, losses, adversary)
        self.spec = LatentSpec(dim, side * side, (side, side))
        self.register_buffer("deviation", torch.ones(()))
        self._pending: list[Tensor] = []
        self._step = 0

    def use(self, networks: Networks) -> None:
        self.judged.use(networks)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.judged.groups(super().parameter_groups())

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> mean and log-variance, [B, N, D] each"""
        expected = (self.image.channels, self.image.size, self.image.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"expected images [B, {', '.join(map(str, expected))}], got {list(images.shape)}")
        mean, log_variance = self.encoder(images).flatten(2).transpose(1, 2).chunk(2, -1)
        return mean, log_variance.clamp(-30, 20)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = batch["images"]
        mean, log_variance = self.posterior(images)
        if self.training:
            self._pending.append(mean.detach().float().square().mean())
        drawn = self._draw(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        total, found = self.judged(drawn, images, self.decoder.last.weight, self._step)
        return {"loss": total + self.kl_weight * kl, **found, "kl": kl.detach()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images)[0] / self.deviation

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        if latents.ndim != 3 or tuple(latents.shape[1:]) != (self.spec.positions, self.spec.dim):
            raise ValueError(f"expected latents [B, {self.spec.positions}, {self.spec.dim}], got {list(latents.shape)}")
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("the latents to be decoded are not all finite")
        return self._draw(latents * self.deviation).clamp(-1, 1)

    def before_step(self, step: int) -> None:
        self._step, self._pending = step, []
        self.judged.before_step(step)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        self.judged.after_step(step)
        if not self._pending:
            return
        found = distributed.all_sum(torch.stack(self._pending).mean()) / distributed.world()
        self._pending = []
        self.deviation.lerp_(found.sqrt().clamp(min=1e-6), max(0.01, 1 / (step + 1)))

    def _draw(self, latents: Tensor) -> Tensor:
        assert self.spec.grid is not None
        return self.decoder(latents.transpose(1, 2).unflatten(2, self.spec.grid))
