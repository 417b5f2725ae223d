"""Bits that the generator needs for each token of held-out images, given their labels.

1. A generator that goes position by position: -log2 p(tokens | label) in its order of generation, exactly.
2. One that fills in positions: a bound from above, since its likelihood sums over all orders. With k uniform in 1..N and a
   random set of k hidden positions it is the mean of N / k times the nats of the hidden ones: the expected cost of settling
   one position at a time in random order (`exact_bound` of `masked_diffusion`). `draws` stratified k for each image. The
   result then has another name, `bits_per_token_bound`.
3. The mean over images, divided by the tokens of an image; its interval is that of a mean over images (normal).
4. `.rate` is the same per pixel of the picture: what a lossless coder of the *tokens* would send.

These are bits of tokens, not of pixels: the tokenizer loses something, so no number here bounds the bits per dimension of
images, and values of different tokenizers compare only beside their distortion (`psnr`, `lpips`). The likelihood is the
model's own, at temperature 1 and without guidance. Sources: Theis et al. 2016, https://arxiv.org/abs/1511.01844; for the
bound Uria et al. 2014, https://arxiv.org/abs/1310.1757, and Hoogeboom et al. 2022, https://arxiv.org/abs/2110.02037.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.evaluation._mean import Mean
from components.evaluation._numbers import Numbers, uniform
from components.generators._masked import FillIn
from components.interfaces import Autoregressive, EvaluationBatch, Generator, Metric, Networks, Tokenizer, TokenSpec
from components.registry import ComponentError

_SEED = 1000


def orderless_bound(generator: FillIn, tokens: Tensor, labels: Tensor, numbers: Tensor, draws: int) -> Tensor:
    """tokens [B, L], labels and numbers [B] -> estimate of the bound of -log p(tokens | label), [B] in nats; unbiased."""
    codes, positions = generator.codes_of(tokens), generator.spec.positions
    total = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
    for draw in range(draws):
        chance = uniform(numbers, 1 + positions, _SEED + draw).to(codes.device)
        hidden = ((draw + chance[:, 0]) / draws * positions).long() + 1  # k of each row
        known = chance[:, 1:].argsort(1).argsort(1) >= hidden[:, None]
        total += generator.nats(codes, known, labels).sum(1).double() * positions / hidden
    return total / draws


class BitsPerToken(Metric):
    """`draws` matters for generators that fill in only; more draws narrow the interval."""

    better: ClassVar[Literal["higher", "lower"]] = "lower"

    def __init__(self, networks: Networks, spec: TokenSpec, *, draws: Annotated[int, Field(ge=1)] = 16) -> None:
        self.spec, self.draws, self.mean, self.numbers = spec, draws, Mean(), Numbers()
        self.name, self.pixels = "bits_per_token", 0
        self.tokenizer: Tokenizer | None = None
        self.generator: Autoregressive | FillIn | None = None

    def use(self, tokenizer: Tokenizer, generator: Generator | None) -> None:
        if generator is None:
            return
        if not isinstance(generator, (Autoregressive, FillIn)):
            raise ComponentError(f"{type(generator).__name__} gives no likelihood of tokens", ("type",))
        if generator.conditioner.key != "labels":
            raise ComponentError(
                f"held-out images come with labels, the generator is asked by '{generator.conditioner.key}'", ("type",)
            )
        self.tokenizer, self.generator = tokenizer, generator
        self.name = "bits_per_token" if isinstance(generator, Autoregressive) else "bits_per_token_bound"

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        images, labels = batch.heldout, batch.heldout_labels
        if self.tokenizer is None or self.generator is None or images is None or labels is None:
            return
        numbers = self.numbers.of(batch.numbers, len(images))
        tokens = self.tokenizer.encode(images) if batch.tokens is None else batch.tokens
        self.generator.conditioner.check(labels)
        if isinstance(self.generator, Autoregressive):
            nats = -self.generator.log_probs(tokens, labels).double().sum(1)
        else:
            nats = orderless_bound(self.generator, tokens, labels, numbers, self.draws)
        self.pixels = images.shape[-2] * images.shape[-1]
        self.mean.update(nats / math.log(2) / self.spec.length)

    def merge(self, other: Metric) -> None:
        assert isinstance(other, BitsPerToken)
        self.mean.merge(other.mean.count, other.mean.mean, other.mean.scatter)
        self.pixels = self.pixels or other.pixels

    def compute(self) -> dict[str, float]:
        found = self.mean.named(self.name)
        return found | {f"{self.name}.rate": found[self.name] * self.spec.length / self.pixels} if found else {}
