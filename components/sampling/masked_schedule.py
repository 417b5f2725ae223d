"""MaskGIT's sampling: everything at once, then keep what is surest and ask again.

1. In each of `steps` calls all hidden positions are drawn; of these the surest stay, so many that gamma(progress) of all
   positions are hidden afterwards (at least one is settled a call; a sample of N positions takes at most N calls).
2. How sure: the log-probability of what was drawn (before any rule), plus Gumbel noise times `randomness` * (1 - progress).
3. Settled positions never change. Guidance and rules are the engine's; guidance may grow with the share that is known.

Deliberately absent: remasking of what is settled; an order that does not look at what was drawn (`random_schedule`).
Source: Chang et al. 2022, https://arxiv.org/abs/2202.04200, section 3.2; the noise is that of the released code.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Generator, Parallel, Sampler
from components.sampling._parallel import Canvas, hidden_after
from components.sampling._policy import Guidance, Policy
from components.sampling._suited import suited
from components.sampling.rules import chosen


class MaskedSchedule(Sampler):
    """
    >>> MaskedSchedule(steps=4, temperature=0.9, top_k=100).rules
    (Temperature(value=0.9), TopK(k=100))
    """

    def __init__(
        self,
        *,
        steps: Annotated[int, Field(ge=1)] = 16,
        schedule: Literal["cosine", "linear", "square"] = "cosine",
        randomness: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.5,
        temperature: Annotated[float, Field(ge=0)] = 1.0,
        top_k: Annotated[int, Field(ge=0)] = 0,
        top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
        guidance: Annotated[float, Field(ge=0)] = 1.0,
        guidance_curve: Literal["constant", "linear", "power_cosine"] = "constant",
    ) -> None:
        self.steps, self.schedule, self.randomness = steps, schedule, randomness
        self.guidance = Guidance(guidance, guidance_curve)
        self.rules = chosen(temperature=temperature, top_k=top_k, top_p=top_p)

    def sample(self, generator: Generator, condition: Tensor, rng: torch.Generator) -> Tensor:
        model = suited(self, generator, Parallel)
        policy = Policy(rng, self.rules, self.guidance)
        canvas = Canvas(model, condition, policy)
        rows, positions = canvas.known.shape
        hidden_now = positions
        for hidden_next in hidden_after(self.schedule, self.steps, positions) if rows else []:
            progress = 1 - hidden_now / positions
            wanted = ~canvas.known
            codes, confidence = canvas.draw(canvas.predict(), wanted, progress)
            sure = confidence + self.randomness * hidden_next / positions * _gumbel(confidence.shape, rng)
            keep = sure.view(rows, hidden_now).topk(hidden_now - hidden_next, -1).indices
            where = wanted.nonzero()[:, 1].view(rows, hidden_now).gather(1, keep)  # [B, settled]
            drawn = codes.view(rows, hidden_now, -1)
            index = keep[..., None].expand(-1, -1, drawn.shape[-1])
            canvas.codes.scatter_(1, where[..., None].expand_as(index), drawn.gather(1, index))
            canvas.known.scatter_(1, where, True)
            hidden_now = hidden_next
        return canvas.tokens()


def _gumbel(shape: torch.Size, rng: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
    return -(-uniform.clamp(min=1e-300).log()).log().float()
