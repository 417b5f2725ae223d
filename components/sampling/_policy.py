"""What draws: guidance, then rules, then one uniform number a token. A head only hands it logits (interfaces.Draw)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from components.sampling.rules import Greedy, Rule, apply


@dataclass(frozen=True)
class Guidance:
    """How strongly samples are led away from what is drawn without a condition: 1 is off, 0 unconditional.

    `curve` says how the scale comes from 1 to `scale` while sampling proceeds: at once; linearly (Wang et al. 2025,
    arXiv:2503.16430); or as a power of a cosine, late and steeply (Gao et al. 2023, MDT, arXiv:2303.14389)."""

    scale: float = 1.0
    curve: Literal["constant", "linear", "power_cosine"] = "constant"
    power: float = 2.75  # of the power cosine

    @property
    def off(self) -> bool:
        return self.scale == 1.0

    def at(self, progress: float) -> float:
        """The scale when this share of the samples' positions (or steps) is done, in [0, 1]."""
        if self.curve == "constant":
            return self.scale
        share = progress if self.curve == "linear" else (1 - math.cos(math.pi * progress**self.power)) / 2
        return 1 + (self.scale - 1) * share


def guide(logits: Tensor, scale: float) -> Tensor:
    """[2 R, ...], conditional rows first, then their unconditional twins -> [R, ...]"""
    conditional, null = logits.chunk(2)
    return torch.lerp(null, conditional, scale)


def invert(logits: Tensor, uniform: Tensor) -> Tensor:
    """The tokens [R] at the quantiles `uniform` [R] in [0, 1) of softmax(logits [R, V]); never one at -inf.

    In double precision: in single, the last tokens of a large vocabulary would be drawn too seldom."""
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1, dtype=torch.float64)
    point = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


def _log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


class Policy:
    """Draws the codes of a position, one call a code. With guidance every row has an unconditional twin in the second half
    of what a head hands over, and both get the token that the row draws."""

    def __init__(
        self, rng: torch.Generator, rules: Sequence[Rule], guidance: Guidance, *, uniform: Tensor | None = None
    ) -> None:
        """`uniform` [R, L] are the random numbers of all tokens; without them each call draws its own."""
        self.rng, self.rules, self.guidance, self.uniform = rng, tuple(rules), guidance, uniform
        # The likeliest token needs no random number, and the rule that leaves nothing else need not be computed.
        self.certain = bool(self.rules) and isinstance(self.rules[-1], Greedy)
        if self.certain:
            self.rules = self.rules[:-1]
        self.scale, self.next, self.first = guidance.scale, 0, 0
        self.drawn: Tensor | None = None
        self.kept: list[Tensor] | None = None
        self.sure: list[Tensor] | None = None

    @property
    def twins(self) -> bool:
        return not self.guidance.off

    def with_twins(self, codes: Tensor) -> Tensor:
        """[R, ...] -> [2 R, ...] where there are twins"""
        return torch.cat([codes, codes]) if self.twins else codes

    def at(self, progress: float, token: int = 0, drawn: Tensor | None = None) -> None:
        """What comes next: the share that is done, the number of the next token of a row, the codes so far [R, P, G]."""
        self.scale, self.next, self.first, self.drawn = self.guidance.at(progress), token, token, drawn

    def keep_log_probs(self) -> None:
        self.kept = []

    def log_probs(self) -> Tensor:
        """[R, G] in nats of the codes drawn since the last time, under the policy they were drawn from."""
        assert self.kept is not None, "keep_log_probs() was not called"
        kept, self.kept = self.kept, []
        return torch.stack(kept, -1)

    def keep_confidence(self) -> None:
        self.sure = []

    def confidence(self) -> Tensor:
        """[R, G] in nats of the codes drawn since the last time, under the guided model before any rule."""
        assert self.sure is not None, "keep_confidence() was not called"
        sure, self.sure = self.sure, []
        return torch.stack(sure, -1)

    def __call__(self, logits: Tensor) -> Tensor:
        model = (guide(logits, self.scale) if self.twins else logits).float()  # [R, V]
        history = None if self.drawn is None else self.drawn[..., self.next - self.first]
        policy = apply(model, self.rules, history)
        tokens = policy.argmax(-1) if self.certain else invert(policy, self._uniform(len(policy)))
        if self.kept is not None:
            taken = _log_prob(policy, tokens)
            self.kept.append(torch.zeros_like(taken) if self.certain else taken)
        if self.sure is not None:
            self.sure.append(_log_prob(model, tokens))
        self.next += 1
        return self.with_twins(tokens)

    def _uniform(self, rows: int) -> Tensor:
        if self.uniform is not None:
            return self.uniform[:, self.next]
        return torch.rand(rows, generator=self.rng, device=self.rng.device, dtype=torch.float64)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        rows = shape[0] // 2 if self.twins else shape[0]
        return self.with_twins(torch.randn((rows, *shape[1:]), generator=self.rng, device=self.rng.device))

    def guided(self, values: Tensor) -> Tensor:
        return self.with_twins(guide(values, self.scale)) if self.twins else values
