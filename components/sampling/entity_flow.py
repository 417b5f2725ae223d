"""Sampling of next-X prediction: each entity from noise to latents in some steps, the finished ones in the cache.

1. For each entity: from noise at t = 1, Euler-Maruyama steps to t = 0 along the velocity, with fresh noise of strength
   `stochasticity` * 2 t; the last step is deterministic. 0 is the plain Euler method.
2. A finished entity is fed once more, clean at t = 0; its keys and values are the context of those to come.
3. Guidance grows over the entities: 1 + (guidance - 1) * i / (E - 1); with a single entity it is `guidance`.

Deliberately absent: rules (there are no logits), higher-order solvers. Source: Ren et al. 2025, xAR,
https://arxiv.org/abs/2502.20388, section 3.3 and appendix; the diffusion term: Ma et al. 2024, SiT,
https://arxiv.org/abs/2401.08740, section 2.3.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.generators.next_x import NextX
from components.interfaces import Generator, Sampler
from components.sampling._packed import Packed
from components.sampling._policy import guide
from components.sampling._suited import suited
from components.sampling.engine import sampling_mode


class EntityFlow(Sampler):
    """
    >>> EntityFlow(guidance=3.0).scale(0, 4), EntityFlow(guidance=3.0).scale(3, 4)
    (1.0, 3.0)
    """

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=1, description="of each entity")] = 40,
        guidance: Annotated[float, Field(ge=0)] = 1.0,
        stochasticity: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        self.steps, self.guidance, self.stochasticity = steps, guidance, stochasticity

    def scale(self, entity: int, entities: int) -> float:
        return 1 + (self.guidance - 1) * (entity / (entities - 1) if entities > 1 else 1.0)

    def sample(self, generator: Generator, condition: Tensor, rng: torch.Generator) -> Tensor:
        """condition [B, ...] -> latents [B, N, D]"""
        model = suited(self, generator, NextX)
        model.conditioner.check(condition)
        rows, twins = len(condition), self.guidance != 1
        drawn: list[Tensor] = []  # entity after entity, [B, positions of it, D]
        if not rows:
            return torch.zeros(0, model.spec.positions, model.spec.dim, device=condition.device)
        both = torch.cat([condition, model.conditioner.null(condition)]) if twins else condition
        dtype = model.lift.weight.dtype
        with sampling_mode(model, Packed.of(model)):
            cache = model.backbone.new_cache(len(both), condition.device, dtype)
            for entity, size in enumerate(model.partition.sizes):
                x = torch.randn(rows, size, model.spec.dim, generator=rng, device=condition.device, dtype=dtype)
                before = cache.position
                for step in range(self.steps, 0, -1):
                    velocity = self._velocity(model, x, step / self.steps, both, entity, cache)
                    cache.rewind(before)
                    x = self._step(x, velocity, step, rng)
                drawn.append(x)
                if entity + 1 < model.entities:
                    self._velocity(model, x, 0.0, both, entity, cache)  # clean, for those to come
        return model.partition.join(torch.cat(drawn, 1))  # outside inference mode: it may be used in training

    def _step(self, x: Tensor, velocity: Tensor, step: int, rng: torch.Generator) -> Tensor:
        """From t = step / steps one step towards 0: d x = (v - w/2 * score) d t + sqrt(w) d W, w = stochasticity * 2 t."""
        t, h = step / self.steps, 1 / self.steps
        if not self.stochasticity or step == 1:
            return x - h * velocity
        strength = self.stochasticity * 2 * t
        score = -(x + (1 - t) * velocity) / t  # x + (1 - t) v is the noise in x, and the score -noise / t
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return x - h * velocity + 0.5 * h * strength * score + (h * strength) ** 0.5 * noise

    def _velocity(self, model: NextX, x: Tensor, t: float, both: Tensor, entity: int, cache: object) -> Tensor:
        twice = torch.cat([x, x]) if len(both) > len(x) else x
        times = torch.full((len(twice), 1), t, device=x.device)
        found = model.velocity(twice, times, both, entity, cache)
        return guide(found, self.scale(entity, model.entities)) if len(both) > len(x) else found
