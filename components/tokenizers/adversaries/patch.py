"""A discriminator of patches (PatchGAN) with the hinge loss, weighed as VQGAN does.

1. Strided convolutions give one verdict for each overlapping patch; many small judges instead of one.
2. It lowers mean(max(0, 1 - real)) + mean(max(0, 1 + drawn)); the tokenizer lowers -mean(drawn).
3. The tokenizer's term is scaled so that its gradient at the decoder's last layer is as long as that of the
   reconstruction loss (`adaptive`, VQGAN equation 7), then by `weight`; it is zero before step `start`.
4. LeCAM: the verdicts are held near moving averages of those on the other kind, which steadies small data.

Norms are of groups, not of batches, so that a verdict depends on its own image. Deliberately absent: augmentation,
gradient penalties. Sources: Isola et al. 2017, https://arxiv.org/abs/1611.07004; Esser et al. 2021, VQGAN,
https://arxiv.org/abs/2012.09841, section 3.1; Tseng et al. 2021, LeCAM, https://arxiv.org/abs/2104.03310, equation 6.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from components.interfaces import Adversary, ImageFormat
from components.training import distributed


class Patch(Adversary):
    averages: Tensor  # [2] moving averages of the verdicts on real and on drawn images

    def __init__(
        self,
        image: ImageFormat,
        *,
        width: Annotated[int, Field(ge=8, multiple_of=8)] = 64,
        layers: Annotated[int, Field(ge=1)] = 3,
        weight: Annotated[float, Field(ge=0)] = 0.5,
        start: Annotated[int, Field(ge=0, description="step from which the tokenizer listens")] = 0,
        lecam: Annotated[float, Field(ge=0)] = 0.0,
    ) -> None:
        super().__init__()
        self.weight, self.start, self.lecam = weight, start, lecam
        parts: list[nn.Module] = [nn.Conv2d(image.channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels, size = width, image.size // 2
        for _ in range(layers - 1):
            if size < 4:
                break
            wider = min(2 * channels, 8 * width)
            parts += [nn.Conv2d(channels, wider, 4, 2, 1), nn.GroupNorm(8, wider), nn.LeakyReLU(0.2)]
            channels, size = wider, size // 2
        self.net = nn.Sequential(*parts, nn.Conv2d(channels, 1, 3, padding=1))
        self.register_buffer("averages", torch.zeros(2))
        self._seen: list[Tensor] = []

    def judge(self, drawn: Tensor, reconstruction: Tensor, last: Tensor, step: int) -> Tensor:
        if step < self.start:
            return drawn.new_zeros(())
        constant = {name: parameter.detach() for name, parameter in self.net.named_parameters()}
        loss = -functional_call(self.net, constant, (drawn,)).mean()
        return self.weight * self.adaptive(loss, reconstruction, last) * loss

    @staticmethod
    def adaptive(loss: Tensor, reconstruction: Tensor, last: Tensor) -> Tensor:
        """|gradient of the reconstruction| / |gradient of the loss| at the weights `last`, at most 10,000"""
        if not loss.requires_grad:
            return loss.new_ones(())
        of_both = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (reconstruction, loss)]
        return (of_both[0] / (of_both[1] + 1e-4)).clamp(0, 1e4).detach()

    def learn(self, drawn: Tensor, images: Tensor) -> Tensor:
        real, fake = self.net(images), self.net(drawn)
        loss = (1 - real).relu().mean() + (1 + fake).relu().mean()
        if self.lecam:
            if self.training:
                self._seen.append(torch.stack([real.detach().mean(), fake.detach().mean()]))
            pull = (real - self.averages[1]).square().mean() + (fake - self.averages[0]).square().mean()
            loss = loss + self.lecam * pull
        return loss

    def before_step(self, step: int) -> None:
        self._seen = []

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self._seen:
            mean = distributed.all_sum(torch.stack(self._seen).mean(0)) / distributed.world()
            self._seen = []
            self.averages.lerp_(mean, 0.01)
