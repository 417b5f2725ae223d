"""What every tokenizer of images does around its networks: quantize, change, draw, and the losses of it all."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from components.interfaces import (
    Adversary,
    ImageFormat,
    LatentChange,
    Networks,
    Quantized,
    Quantizer,
    ReconstructionLoss,
    Tokenizer,
)
from components.registry import ComponentError, Spec, resolve
from components.tokenizers._tokens import to_codes, to_tokens

SQUARED_ABSOLUTE = [resolve(ReconstructionLoss, {"type": name}) for name in ("squared", "absolute")]


class Judged(nn.Module):
    """Reconstruction losses and an adversary together: what drawn images cost."""

    def __init__(
        self, image: ImageFormat, losses: list[Spec[ReconstructionLoss]], adversary: Spec[Adversary] | None
    ) -> None:
        super().__init__()
        self.losses = [(spec.type, spec.build()) for spec in losses]
        self.adversary = adversary.build(image) if adversary is not None else None

    def use(self, networks: Networks) -> None:
        for _, loss in self.losses:
            loss.use(networks)

    def before_step(self, step: int) -> None:
        if self.adversary is not None:
            self.adversary.before_step(step)

    def after_step(self, step: int) -> None:
        if self.adversary is not None:
            self.adversary.after_step(step)

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups with the adversary's as a player of its own."""
        its = {id(parameter) for parameter in self.parameters()}
        own = [{**group, "params": [p for p in group["params"] if id(p) not in its]} for group in groups]
        return [*own, {"params": list(self.parameters()), "player": "adversary", "weight_decay": 0.0}] if its else own

    def forward(self, drawn: Tensor, images: Tensor, last: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(the sum, its parts by name)"""
        found = {name: loss(drawn, images) for name, loss in self.losses}
        total = sum(found.values(), drawn.new_zeros(()))
        if self.adversary is not None:
            found["adversarial"] = self.adversary.judge(drawn, total, last, step)
            found["adversary"] = self.adversary.learn(drawn.detach(), images)
            total = total + found["adversarial"] + found["adversary"]
        return total, found


class ImageTokenizer(Tokenizer):
    """A subclass builds `quantizer` and its networks, and says how they are used."""

    training_only: ClassVar[tuple[str, ...]] = ("judged",)
    quantizer: Quantizer

    def __init__(
        self,
        image: ImageFormat,
        losses: list[Spec[ReconstructionLoss]],
        adversary: Spec[Adversary] | None,
        change: Spec[LatentChange] | None,
        *,
        any_length: bool,
    ) -> None:
        """`any_length`: whether fewer latents than all can be decoded."""
        super().__init__()
        self.image = image
        self.judged = Judged(image, losses, adversary)
        self.change = change.build() if change is not None else None
        if self.change is not None and self.change.shortens and not any_length:
            raise ComponentError("a grid is drawn from all of its latents, this leaves some out", ("change", "type"))
        self._step = 0

    @abstractmethod
    def latents(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, N, D]"""

    @abstractmethod
    def draw(self, latents: Tensor) -> Tensor:
        """Quantized latents [B, N, D] -> [B, C, H, W], not cut to [-1, 1]"""

    @abstractmethod
    def last_weights(self) -> Tensor:
        """Of the decoder's last layer"""

    def use(self, networks: Networks) -> None:
        self.judged.use(networks)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.judged.groups(super().parameter_groups())

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = batch["images"]
        latents = self.latents(self._checked(images))
        quantized = self.quantizer(latents)
        drawn = self.draw(self._changed(latents, quantized))
        judged, found = self.judged(drawn, images, self.last_weights(), self._step)
        loss = judged + sum(quantized.losses.values())
        return {"loss": loss, **found, **quantized.losses}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        latents = self.latents(self._checked(images))
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(
                f"{type(self).__name__}: the latents of {len(images)} images are not all finite; look for NaN in the images "
                "or in the tokenizer's weights"
            )
        return to_tokens(self.quantizer(latents).codes)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        return self.draw(self.quantizer.decode(to_codes(tokens, self.spec))).clamp(-1, 1)

    def before_step(self, step: int) -> None:
        self._step = step
        self.quantizer.before_step(step)
        self.judged.before_step(step)

    def after_step(self, step: int) -> None:
        self.quantizer.after_step(step)
        self.judged.after_step(step)

    def _changed(self, latents: Tensor, quantized: Quantized) -> Tensor:
        if self.change is None or not self.training:
            return quantized.latents
        return self.change(latents, quantized, self.quantizer, self._step)

    def _checked(self, images: Tensor) -> Tensor:
        expected = (self.image.channels, self.image.size, self.image.size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"expected images [B, {', '.join(map(str, expected))}], got {list(images.shape)}")
        return images
