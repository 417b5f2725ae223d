"""Rules that reshape the distribution before a token is drawn: logits [B, V] -> logits [B, V], removed tokens at -inf.
A rule may look at the tokens the row has drawn so far, [B, P].

Rules compose in the order given; the first one usually is the temperature, as the cuts are defined on what it leaves.
Every cut keeps at least the likeliest token and leaves the ratios of the tokens it keeps as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Temperature:
    """Divides the logits: below 1 sharper, above 1 flatter; `value` > 0."""

    value: float

    def __call__(self, logits: Tensor, drawn: Tensor | None = None) -> Tensor:
        return logits / self.value


@dataclass(frozen=True)
class Greedy:
    """Keeps the likeliest token (the limit of temperature 0); among equals the first."""

    def __call__(self, logits: Tensor, drawn: Tensor | None = None) -> Tensor:
        best = logits.argmax(-1, keepdim=True)
        return logits.new_full(logits.shape, -math.inf).scatter_(-1, best, 0.0)


@dataclass(frozen=True)
class TopK:
    """Keeps the k likeliest tokens, and those equal to the last of them. Fan et al. 2018, arXiv:1805.04833."""

    k: int

    def __call__(self, logits: Tensor, drawn: Tensor | None = None) -> Tensor:
        if self.k >= logits.shape[-1]:
            return logits
        least = logits.topk(self.k).values[..., -1:]
        return logits.masked_fill(logits < least, -math.inf)


@dataclass(frozen=True)
class TopP:
    """Keeps the smallest set of likeliest tokens with at least the mass `p`. Holtzman et al. 2019, arXiv:1904.09751."""

    p: float

    def __call__(self, logits: Tensor, drawn: Tensor | None = None) -> Tensor:
        ordered, order = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # the mass of the tokens that are likelier
        return _cut(logits, order, before >= self.p)


@dataclass(frozen=True)
class MinP:
    """Keeps tokens with at least `p` times the largest probability. Nguyen et al. 2024, arXiv:2407.01082."""

    p: float

    def __call__(self, logits: Tensor, drawn: Tensor | None = None) -> Tensor:
        least = logits.amax(-1, keepdim=True) + math.log(self.p)
        return logits.masked_fill(logits < least, -math.inf)


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens whose surprise is nearest to the entropy, up to at least the mass `p`, and the likeliest one.

    Source: Meister et al. 2022, equation 8, arXiv:2202.00666; the likeliest token is kept here in addition."""

    p: float

    def __call__(self, logits: Tensor, drawn: Tensor | None = None) -> Tensor:
        log_probs = logits.log_softmax(-1)
        probabilities = log_probs.exp()
        entropy = -(probabilities * log_probs.clamp(min=-1e9)).sum(-1, keepdim=True)
        order = (log_probs + entropy).abs().argsort(stable=True, dim=-1)
        mass = probabilities.gather(-1, order)
        removed = mass.cumsum(-1) - mass >= self.p
        removed &= order != logits.argmax(-1, keepdim=True)
        return _cut(logits, order, removed)


@dataclass(frozen=True)
class Repetition:
    """Makes tokens that the row has drawn among its last `window` less likely: positive logits are divided by `penalty`,
    negative ones multiplied. Keskar et al. 2019, CTRL, equation 4, arXiv:1909.05858; 1 is off."""

    penalty: float
    window: int = 256

    def __call__(self, logits: Tensor, drawn: Tensor | None = None) -> Tensor:
        if drawn is None or not drawn.shape[1]:
            return logits
        recent = drawn[:, -self.window :]
        found = logits.gather(-1, recent)
        return logits.scatter(-1, recent, torch.where(found > 0, found / self.penalty, found * self.penalty))


def chosen(
    *,
    repetition: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    typical: float = 1.0,
    top_p: float = 1.0,
) -> tuple[Rule, ...]:
    """The rules that a sampler's settings ask for, in this order; what is off is left out, a temperature of 0 is greedy.

    >>> chosen(temperature=0.9, top_k=100)
    (Temperature(value=0.9), TopK(k=100))
    """
    rules: list[Rule | None] = [
        Repetition(repetition) if repetition > 1 else None,
        (Greedy() if temperature == 0 else Temperature(temperature)) if temperature != 1 else None,
        TopK(top_k) if top_k else None,
        MinP(min_p) if min_p else None,
        Typical(typical) if typical < 1 else None,
        TopP(top_p) if top_p < 1 else None,
    ]
    return tuple(rule for rule in rules if rule is not None)


def apply(logits: Tensor, rules: Iterable[Rule], drawn: Tensor | None = None) -> Tensor:
    """All rules one after another."""
    for rule in rules:
        logits = rule(logits, drawn)
    return logits


def _cut(logits: Tensor, order: Tensor, removed: Tensor) -> Tensor:
    """Sets to -inf what is marked in `removed`, which is in the order of `order`."""
    return logits.masked_fill(removed.new_empty(removed.shape).scatter_(-1, order, removed), -math.inf)
