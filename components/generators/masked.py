"""Masked generation: fill in what is hidden, from what is known, at any share of hidden positions (MaskGIT).

1. A training sample has a share of its positions hidden, drawn anew each time: gamma(u), u uniform, of a schedule; at least
   one is hidden. Hidden positions are one learned vector.
2. Every position sees every other; the loss is the mean negative log-likelihood of the hidden positions' codes.
3. A condition is replaced by none with probability `condition_dropout`, for guidance.
4. `masked_schedule` samples: all hidden at first, the surest settled step by step, by the same schedule.

`schedule: truncated_normal` draws the share from N(1, 0.25^2) cut to [0.7, 1], as MAR does for heads that draw one position
well. Deliberately absent: loss on known positions, label smoothing (the head's likelihood is what sampling draws from).
Sources: Chang et al. 2022, MaskGIT, https://arxiv.org/abs/2202.04200, section 3; Li et al. 2024, MAR,
https://arxiv.org/abs/2406.11838, section 3.4.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.generators._masked import FillIn
from components.generators._of_tokens import CLASS_LABEL
from components.generators._schedules import SHARES, Schedule
from components.interfaces import Backbone, Conditioner, Head, TokenSpec
from components.registry import Spec


class Masked(FillIn):
    """
    >>> from components import registry
    >>> from components.interfaces import Generator
    >>> small = {"type": "transformer", "depth": 1, "width": 32, "heads": 2}
    >>> config = {"type": "masked", "backbone": small, "head": {"type": "categorical"}}
    >>> model = registry.build(Generator, config, TokenSpec((64,), 16, "sequence"), 10)
    >>> model.predict(torch.zeros(2, 16, 1).long(), torch.ones(2, 16).bool(), torch.tensor([3, 10])).shape
    torch.Size([2, 16, 32])
    """

    def __init__(
        self,
        spec: TokenSpec,
        classes: int,
        *,
        backbone: Spec[Backbone],
        head: Spec[Head],
        conditioner: Spec[Conditioner] = CLASS_LABEL,
        condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        schedule: Schedule = "cosine",
    ) -> None:
        super().__init__(spec, classes, backbone, head, conditioner, condition_dropout)
        self.share = SHARES[schedule]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        codes, condition = self.codes_of(batch["tokens"]), self.condition_of(batch)
        known = ~self.hide(len(codes), codes.device)
        hidden = (~known).sum()
        loss = self.nats(codes, known, condition).sum() / hidden
        return {"loss": loss, "bits_per_token": loss.detach() / math.log(2) / self.spec.codes}

    def hide(self, rows: int, device: torch.device) -> Tensor:
        """Which positions are hidden, [rows, N] bool: exactly ceil(share * N) of each row, every choice equally likely."""
        positions = self.spec.positions
        count = (self.share(torch.rand(rows, device=device)) * positions).ceil().clamp(1, positions)
        return torch.rand(rows, positions, device=device).argsort(1).argsort(1) < count[:, None]
