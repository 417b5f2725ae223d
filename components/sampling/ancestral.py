"""Ancestral sampling: each token from its conditional distribution, given those before it.

1. Guidance, constant over positions (`engine.py` has the formula; 1 is off).
2. Temperature; 0 takes the likeliest token.
3. Cuts, in this order: top-k (0 is off), then top-p (1 is off).

With the default values this draws exactly from the model.
Deliberately absent: guidance schedules, repetition penalties.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Generator, Sampler
from components.sampling.engine import generate
from components.sampling.rules import Greedy, Rule, Temperature, TopK, TopP


class Ancestral(Sampler):
    """
    >>> Ancestral(temperature=0.9, top_k=100).rules
    (Temperature(value=0.9), TopK(k=100))
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(ge=0)] = 1.0,
        top_k: Annotated[int, Field(ge=0)] = 0,
        top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
        guidance: Annotated[float, Field(ge=0)] = 1.0,
    ) -> None:
        self.guidance = guidance
        rules: list[Rule] = []
        if temperature == 0:
            rules.append(Greedy())
        elif temperature != 1:
            rules.append(Temperature(temperature))
        if top_k:
            rules.append(TopK(top_k))
        if top_p < 1:
            rules.append(TopP(top_p))
        self.rules = tuple(rules)

    def sample(self, generator: Generator, labels: Tensor, rng: torch.Generator) -> Tensor:
        return generate(generator, labels, rng, self.rules, guidance=self.guidance)
