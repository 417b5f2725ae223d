"""What samplers of parallel generators share: codes, which of them are known, and drawing some of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from components.generators._schedules import SHARES, Schedule
from components.interfaces import Parallel
from components.sampling._packed import Packed
from components.sampling._policy import Guidance, Policy, guide
from components.sampling.engine import sampling_mode


def hidden_after(schedule: Schedule, steps: int, positions: int) -> list[int]:
    """How many positions are hidden after each call, down to 0: gamma(progress) of all, but at least one less each time.

    >>> hidden_after("linear", 4, 10), hidden_after("cosine", 4, 2)
    ([7, 5, 2, 0], [1, 0])
    """
    found: list[int] = []
    for step in range(1, steps + 1):
        progress = torch.tensor(step / steps, dtype=torch.float64)
        wanted = int((SHARES[schedule](progress) * positions + 1e-9).floor()) if step < steps else 0
        found.append(max(0, min(wanted, (found[-1] if found else positions) - 1)))
        if not found[-1]:
            break
    return found


class Canvas:
    """`codes` [B, N, G] and `known` [B, N] of one batch while it is filled in; nothing is known at first."""

    def __init__(self, generator: Parallel, condition: Tensor, policy: Policy) -> None:
        generator.conditioner.check(condition)
        self.generator, self.policy, spec = generator, policy, generator.spec
        shape = (len(condition), spec.positions)
        self.codes = torch.zeros((*shape, spec.codes), dtype=torch.int64, device=condition.device)
        self.known = torch.zeros(shape, dtype=torch.bool, device=condition.device)
        null = generator.conditioner.null(condition) if self.twins else None
        self.condition = condition if null is None else torch.cat([condition, null])
        self.packed = Packed.of(generator)
        policy.keep_confidence()

    @property
    def twins(self) -> bool:
        """Whether every row goes through the network twice, the second time without its condition"""
        return self.policy.twins

    def predict(self) -> Tensor:
        """One call of the network: hidden states of all positions, [B or 2 B, N, W]"""
        codes, known = (torch.cat([x, x]) if self.twins else x for x in (self.codes, self.known))
        with sampling_mode(self.generator, self.packed):
            return self.generator.predict(codes, known, self.condition)

    def draw(self, hidden: Tensor, wanted: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """Codes [M, G] for the M positions that are `wanted` [B, N] bool, row by row, and how sure the model is of them [M]."""
        self.policy.at(progress)
        with sampling_mode(self.generator, self.packed):
            chosen = hidden[self.policy.with_twins(wanted)]
            codes = self.generator.head.sample(chosen, self.policy)[: int(wanted.sum())]
            return codes, self.policy.confidence().sum(-1)

    def tokens(self) -> Tensor:
        """[B, L]"""
        return self.codes.flatten(1).clone()  # outside inference mode: they may be used in training


class FeatureCanvas(Canvas):
    """Guidance leads hidden states, which the head then draws from as it is, instead of logits: what a head of several
    codes makes of a position is then led as a whole. Source: Wang et al. 2025, TokenBridge, arXiv:2503.16430, section 3.3."""

    def __init__(self, generator: Parallel, condition: Tensor, policy: Policy, guidance: Guidance) -> None:
        """A `policy` without guidance"""
        self.guidance = guidance
        super().__init__(generator, condition, policy)

    @property
    def twins(self) -> bool:
        return not self.guidance.off

    def draw(self, hidden: Tensor, wanted: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        if self.twins:
            hidden = guide(hidden, self.guidance.at(progress))
        return super().draw(hidden, wanted, progress)
