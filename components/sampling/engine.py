"""The one sampling engine: every sampler and every rollout draws its tokens here.

1. `begin` gives the logits of the first token, `advance` those of each next one, from a static cache.
2. Classifier-free guidance runs the rows once with their labels and once with the null class, as one batch of 2 B:
   logits = null + guidance * (conditional - null). So 1 is off (null rows are then not computed), 0 is unconditional.
3. Rules (`rules.py`) reshape the guided logits; the softmax of what is left is the *sampled policy*.
4. One uniform number a row and a position, inverted through the cumulative distribution, gives the token. All numbers
   of a row are drawn together, rows in order: on the CPU a sample depends on its row, not on how many come with it.

Guidance source: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598 (their w is guidance - 1).
Deliberately absent: guidance that changes with the position, early stopping (samples have one length), beams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from components.interfaces import Generator
from components.sampling.rules import Rule, apply

OnStep = Callable[[int, Tensor], None]


def generate(
    generator: Generator,
    labels: Tensor,
    rng: torch.Generator,
    rules: Sequence[Rule] = (),
    *,
    guidance: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """labels [B] -> tokens [B, L] int64.

    `rng` lives on the generator's device. `on_step(position, tokens [B])` is called after each draw, for streaming.
    Raises ValueError for labels outside [0, K], K being the null class."""
    return _draw(generator, labels, rng, rules, guidance, on_step, None)


def generate_with_log_probs(
    generator: Generator, labels: Tensor, rng: torch.Generator, rules: Sequence[Rule] = (), *, guidance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """As `generate`, with the log-probability in nats of each token drawn *under the sampled policy*, [B, L] float32:
    after guidance and rules, so it equals `generator.log_probs` only without both."""
    log_probs = torch.empty(len(labels), generator.spec.length, device=labels.device)
    return _draw(generator, labels, rng, rules, guidance, None, log_probs), log_probs


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Logits [2 B, V], conditional rows first, then their null rows -> [B, V]"""
    conditional, null = logits.chunk(2)
    return torch.lerp(null, conditional, guidance)


def invert(logits: Tensor, uniform: Tensor) -> Tensor:
    """The tokens [B] at the quantiles `uniform` [B] in [0, 1) of softmax(logits [B, V]); never one at -inf.

    In double precision: in single, the last tokens of a large vocabulary would be drawn too seldom."""
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1, dtype=torch.float64)
    point = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, point, right=True)[:, 0]


def _draw(
    generator: Generator,
    labels: Tensor,
    rng: torch.Generator,
    rules: Sequence[Rule],
    guidance: float,
    on_step: OnStep | None,
    log_probs: Tensor | None,
) -> Tensor:
    rows, length = len(labels), generator.spec.length
    # Made outside inference mode: the result may be used in training.
    tokens = torch.empty(rows, length, dtype=torch.int64, device=labels.device)
    if not rows:
        return tokens
    if not 0 <= int(labels.min()) <= int(labels.max()) <= generator.classes:
        raise ValueError(f"labels must be in [0, {generator.classes}], got {labels.unique().tolist()}")
    guided = guidance != 1.0
    was_training = generator.training
    generator.eval()  # dropout would draw from another model
    try:
        with torch.inference_mode():
            uniform = torch.rand(rows, length, generator=rng, device=labels.device, dtype=torch.float64)
            asked = torch.cat([labels, torch.full_like(labels, generator.classes)]) if guided else labels
            logits, cache = generator.begin(asked)
            for position in range(length):
                policy = apply((guide(logits, guidance) if guided else logits).float(), rules)
                drawn = invert(policy, uniform[:, position])  # [B]
                tokens[:, position] = drawn
                if log_probs is not None:
                    log_probs[:, position] = policy.log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
                if on_step is not None:
                    on_step(position, tokens[:, position])
                if position + 1 < length:
                    logits = generator.advance(drawn.repeat(2) if guided else drawn, cache)
    finally:
        if was_training:
            generator.train()
    return tokens
