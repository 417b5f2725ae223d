"""Ancestral sampling: each token from its conditional distribution, given those before it.

1. Guidance, constant or growing over the positions (`_policy.py` has the curves; a scale of 1 is off).
2. A penalty for what the row has drawn lately (1 is off), then the temperature; 0 takes the likeliest token.
3. Cuts, in this order: top-k (0 is off), min-p (0 is off), typical (1 is off), then top-p (1 is off).

With the default values this draws exactly from the model.
Deliberately absent: beams, several samples of which the best is kept.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Autoregressive, Generator, Sampler
from components.sampling._policy import Guidance
from components.sampling._suited import suited
from components.sampling.engine import generate
from components.sampling.rules import chosen


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
        min_p: Annotated[float, Field(ge=0, le=1)] = 0.0,
        typical: Annotated[float, Field(gt=0, le=1)] = 1.0,
        repetition: Annotated[float, Field(ge=1)] = 1.0,
        guidance: Annotated[float, Field(ge=0)] = 1.0,
        guidance_curve: Literal["constant", "linear", "power_cosine"] = "constant",
    ) -> None:
        self.guidance = Guidance(guidance, guidance_curve)
        self.rules = chosen(
            repetition=repetition, temperature=temperature, top_k=top_k, min_p=min_p, typical=typical, top_p=top_p
        )

    def sample(self, generator: Generator, condition: Tensor, rng: torch.Generator) -> Tensor:
        return generate(suited(self, generator, Autoregressive), condition, rng, self.rules, guidance=self.guidance)
