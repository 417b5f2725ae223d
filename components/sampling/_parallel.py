"""What samplers of parallel generators share: codes, which of them are known, and drawing some of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from components.interfaces import Parallel
from components.sampling._packed import Packed
from components.sampling._policy import Policy
from components.sampling.engine import sampling_mode


class Canvas:
    """`codes` [B, N, G] and `known` [B, N] of one batch while it is filled in; nothing is known at first."""

    def __init__(self, generator: Parallel, condition: Tensor, policy: Policy) -> None:
        generator.conditioner.check(condition)
        self.generator, self.policy, spec = generator, policy, generator.spec
        shape = (len(condition), spec.positions)
        self.codes = torch.zeros((*shape, spec.codes), dtype=torch.int64, device=condition.device)
        self.known = torch.zeros(shape, dtype=torch.bool, device=condition.device)
        null = generator.conditioner.null(condition) if policy.twins else None
        self.condition = condition if null is None else torch.cat([condition, null])
        self.packed = Packed.of(generator)
        policy.keep_confidence()

    def predict(self) -> Tensor:
        """One call of the network: hidden states of all positions, [B or 2 B, N, W]"""
        twice = self.policy.with_twins
        with sampling_mode(self.generator, self.packed):
            return self.generator.predict(twice(self.codes), twice(self.known), self.condition)

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
