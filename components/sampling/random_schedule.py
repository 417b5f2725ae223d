"""Masked generation in a random order: which positions come next is drawn before what stands there (MAR).

1. Each sample has its own order of positions, every one equally likely.
2. In each of `steps` calls the next ones are settled, so many that gamma(progress) of all positions are hidden afterwards
   (at least one is settled a call; a sample of N positions takes at most N calls).
3. Only these go through the head: with a head that draws code by code that is most of the work.
4. Guidance, which may grow with the share that is known, leads logits, or the features that the head draws from.

With one position a call this draws exactly from the model in that order. Deliberately absent: confidence
(`masked_schedule`). Sources: Li et al. 2024, MAR, https://arxiv.org/abs/2406.11838, section 3.4 and appendix; guidance on
features: Wang et al. 2025, TokenBridge, https://arxiv.org/abs/2503.16430, section 3.3.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Generator, Parallel, Sampler
from components.sampling._parallel import Canvas, FeatureCanvas, hidden_after
from components.sampling._policy import Guidance, Policy
from components.sampling._suited import suited
from components.sampling.rules import chosen


class RandomSchedule(Sampler):
    """
    >>> RandomSchedule(guidance=3.1, temperature=0.96, guidance_on="features").rules  # as TokenBridge-L
    (Temperature(value=0.96),)
    """

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=1)] = 64,
        schedule: Literal["cosine", "linear", "square"] = "cosine",
        temperature: Annotated[float, Field(gt=0)] = 1.0,
        top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
        guidance: Annotated[float, Field(ge=0)] = 1.0,
        guidance_curve: Literal["constant", "linear", "power_cosine"] = "constant",
        guidance_on: Literal["logits", "features"] = "logits",
    ) -> None:
        self.steps, self.schedule = steps, schedule
        self.guidance, self.guidance_on = Guidance(guidance, guidance_curve), guidance_on
        self.rules = chosen(temperature=temperature, top_p=top_p)

    def sample(self, generator: Generator, condition: Tensor, rng: torch.Generator) -> Tensor:
        canvas = self._canvas(suited(self, generator, Parallel), condition, rng)
        rows, positions = canvas.known.shape
        draws = torch.rand(rows, positions, generator=rng, device=rng.device, dtype=torch.float64)
        place = draws.argsort(1).argsort(1)  # of each position in its row's order
        known = 0
        for hidden in hidden_after(self.schedule, self.steps, positions) if rows else []:
            settled = (place >= known) & (place < positions - hidden)
            canvas.codes[settled], _ = canvas.draw(canvas.predict(), settled, known / positions)
            canvas.known |= settled
            known = positions - hidden
        return canvas.tokens()

    def _canvas(self, model: Parallel, condition: Tensor, rng: torch.Generator) -> Canvas:
        if self.guidance_on == "features":
            return FeatureCanvas(model, condition, Policy(rng, self.rules, Guidance()), self.guidance)
        return Canvas(model, condition, Policy(rng, self.rules, self.guidance))
