"""Ancestral sampling of masked diffusion: from t = 1 to 0, each hidden position is settled with probability (t - s) / t.

1. `steps` equal steps of time; in the last one everything that is left is settled.
2. Positions that are settled in a step are drawn independently, given what was known before it.
3. A step in which no position of the batch is settled needs no new call of the network.

With many steps positions are settled one by one in a random order, which is exact sampling; with one, all are independent.
Deliberately absent: remasking, the time as an input. Source: Sahoo et al. 2024, MDLM, https://arxiv.org/abs/2406.07524,
section 4.2 and appendix (caching).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Generator, Parallel, Sampler
from components.sampling._parallel import Canvas
from components.sampling._policy import Guidance, Policy
from components.sampling._suited import suited
from components.sampling.rules import chosen


class Unmasking(Sampler):
    """
    >>> Unmasking(steps=8).steps
    8
    """

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=1)] = 64,
        temperature: Annotated[float, Field(gt=0)] = 1.0,
        top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
        guidance: Annotated[float, Field(ge=0)] = 1.0,
        guidance_curve: Literal["constant", "linear", "power_cosine"] = "constant",
    ) -> None:
        self.steps, self.guidance = steps, Guidance(guidance, guidance_curve)
        self.rules = chosen(temperature=temperature, top_p=top_p)

    def sample(self, generator: Generator, condition: Tensor, rng: torch.Generator) -> Tensor:
        model = suited(self, generator, Parallel)
        canvas = Canvas(model, condition, Policy(rng, self.rules, self.guidance))
        for step in range(self.steps if len(condition) else 0):
            chance = 1 / (self.steps - step)  # (t - s) / t with t = 1 - step / steps
            draws = torch.rand(canvas.known.shape, generator=rng, device=rng.device, dtype=torch.float64)
            settled = (draws < chance) & ~canvas.known
            if not bool(settled.any()):
                continue
            canvas.codes[settled], _ = canvas.draw(canvas.predict(), settled, step / self.steps)
            canvas.known |= settled
        return canvas.tokens()
