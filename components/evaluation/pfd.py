"""Fréchet distance of reconstructions whose tokens were partly replaced by near ones (pFID of RobusTok, on a run's network).

1. Every position of a held-out image is chosen with probability `rate`; its code gives way to one drawn uniformly among the
   nearest to the encoder's latent, the chosen code itself among them (the operator of `changes/neighbours.py`, on all images).
2. The perturbed tokens are decoded; the Fréchet distance of these pictures to the originals is taken in the features of a
   network, for each rate, and averaged over the rates.
3. Random numbers follow from the number of the image alone: all tokenizers with as many positions have the same positions
   perturbed, and the result does not depend on batches or workers.
4. The interval is that of the first-order influence of each image (`_influence.py`) on the mean of the distances, so that an
   image and its own reconstructions count as one; it holds at this number of images, since the distance is biased (`fd`).

It scores a tokenizer without a generator: a generator's mistakes are such neighbours. With `rates: [0]` it is the distance of
plain reconstructions. For quantizers of one codebook (`vq`). The paper's grid of rates and neighbourhoods is not given; the
defaults are ours. Source: Qiu et al. 2025, https://arxiv.org/abs/2503.08354.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.evaluation._influence import Influence
from components.evaluation._mean import Z
from components.evaluation._numbers import Numbers, uniform
from components.evaluation._reservoir import Reservoir
from components.evaluation.fd import Moments, frechet_distance
from components.interfaces import EvaluationBatch, Generator, Metric, Networks, Tokenizer, TokenSpec
from components.networks import Reference, refer
from components.quantizers.vq import VQ
from components.registry import ComponentError
from components.tokenizers._images import ImageTokenizer
from components.tokenizers._tokens import to_codes, to_tokens
from components.tokenizers.changes.neighbours import neighbourhood

_ROWS = 2048  # images that the interval is taken from
_SEED = 2


def replaced(codes: Tensor, near: Tensor, rate: float, chance: Tensor) -> Tensor:
    """Codes [B, N], those near to each [B, N, k], numbers in [0, 1) [B, 2N] -> codes with some replaced, [B, N]."""
    chosen, which = chance.chunk(2, 1)
    drawn = near.gather(2, (which * near.shape[2]).long()[..., None])[..., 0]
    return torch.where(chosen < rate, drawn, codes)


class PerturbedFrechetDistance(Metric):
    """`nearest` is the share of the codebook that counts as near; at least the nearest two codes do."""

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def __init__(
        self,
        networks: Networks,
        spec: TokenSpec,
        *,
        network: Reference = "@judge",
        rates: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.5, 0.7, 0.9),
        nearest: Annotated[float, Field(gt=0, le=1)] = 0.05,
    ) -> None:
        self.name, self.network = f"pfd_{network.removeprefix('@')}", refer(networks, network)
        self.spec, self.rates = spec, rates
        self.near = max(2, round(nearest * spec.vocabulary))
        self.models: tuple[ImageTokenizer, VQ] | None = None
        self.numbers = Numbers()
        self.real, self.drawn = Moments(), [Moments() for _ in rates]
        self.rows = Reservoir(_ROWS)  # an image's features and those of its perturbed reconstructions, side by side

    def use(self, tokenizer: Tokenizer, generator: Generator | None) -> None:
        quantizer = getattr(tokenizer, "quantizer", tokenizer)
        if not isinstance(tokenizer, ImageTokenizer) or not isinstance(quantizer, VQ):
            raise ComponentError(
                f"'pfd' replaces codes of one codebook by near ones; {type(quantizer).__name__} has none: choose quantizer "
                "'vq' or leave this metric out",
                ("type",),
            )
        self.models = tokenizer, quantizer

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        images, tokens = batch.heldout, batch.tokens
        if self.models is None or images is None or tokens is None:
            return
        tokenizer, quantizer = self.models
        numbers = self.numbers.of(batch.numbers, len(images))
        near = neighbourhood(tokenizer.latents(images), quantizer, self.near)
        codes = to_codes(tokens, self.spec)[..., 0]
        found = [self.network.features(images)]
        for index, rate in enumerate(self.rates):
            chance = uniform(numbers, 2 * self.spec.positions, _SEED + index).to(codes.device)
            changed = to_tokens(replaced(codes, near, rate, chance)[..., None])
            found.append(self.network.features(tokenizer.decode(changed)))
        for moments, features in zip((self.real, *self.drawn), found, strict=True):
            moments.update(features)
        self.rows.update(torch.cat(found, 1), numbers)

    def merge(self, other: Metric) -> None:
        assert isinstance(other, PerturbedFrechetDistance)
        for mine, its in zip((self.real, *self.drawn), (other.real, *other.drawn), strict=True):
            mine.merge(its)
        self.rows.merge(other.rows)

    def compute(self) -> dict[str, float]:
        mean = self.real.mean
        if mean is None or self.rows.rows is None:
            return {}
        covariance, (images, *pictures) = self.real.covariance(), self.rows.rows.chunk(1 + len(self.rates), 1)
        distances: list[float] = []
        influences: list[Tensor] = []  # [n] each
        for moments, rows in zip(self.drawn, pictures, strict=True):
            assert moments.mean is not None
            sides = mean, covariance, moments.mean, moments.covariance()
            distances.append(frechet_distance(*sides))
            influence = Influence(*sides)
            if influence.found:
                influences.append(influence.first(images) + influence.second(rows))
        value = sum(distances) / len(distances)
        if len(influences) < len(distances) or self.real.count <= len(mean):
            return {self.name: value}
        half = Z * float(torch.stack(influences).mean(0).var() / self.real.count) ** 0.5
        return {self.name: value, f"{self.name}.low": max(value - half, 0.0), f"{self.name}.high": value + half}
