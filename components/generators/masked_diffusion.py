"""Masked discrete diffusion: hide each position on its own with probability t, and bound the likelihood (MDLM).

1. At time t every position is hidden with probability t (log-linear schedule, alpha_t = 1 - t), apart from the others.
2. The network says what stands at hidden positions; known ones are carried over unchanged (SUBS), so they cost nothing.
3. The loss is the continuous-time bound E_t[1/t * sum of -log p over hidden positions]: it is never below the negative
   log-likelihood of the sampled model, and equals it when the order of filling in does not matter to the network.
4. The times of a batch are stratified: one in each of B equal intervals, so that batches differ little.
5. `unmasking` samples: from t = 1 to 0, each hidden position is settled with probability (t - s) / t.

Deliberately absent: the time as an input (the number of hidden positions says as much), uniform noise, schedules other than
log-linear (the bound does not depend on them). Source: Sahoo et al. 2024, MDLM, https://arxiv.org/abs/2406.07524,
equations 8 to 11.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from components.generators._masked import FillIn
from components.generators._of_tokens import CLASS_LABEL
from components.interfaces import Backbone, Conditioner, Head, TokenSpec
from components.registry import Spec

_EARLIEST = 1e-3  # time; below it almost nothing is hidden and 1/t explodes. What is left out is of this order.


class MaskedDiffusion(FillIn):
    """
    >>> from components import registry
    >>> from components.interfaces import Generator
    >>> small = {"type": "transformer", "depth": 1, "width": 32, "heads": 2}
    >>> config = {"type": "masked_diffusion", "backbone": small, "head": {"type": "categorical"}}
    >>> model = registry.build(Generator, config, TokenSpec((64,), 16, "sequence"), 10)
    >>> model.bound(torch.zeros(2, 16).long(), torch.tensor([3, 10])).shape
    torch.Size([2])
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
    ) -> None:
        super().__init__(spec, classes, backbone, head, conditioner, condition_dropout)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = self._bound(self.codes_of(batch["tokens"]), self.condition_of(batch)).mean() / self.spec.length
        return {"loss": loss, "bits_per_token": loss.detach() / math.log(2)}

    def bound(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """One draw of the bound of -log p(tokens | condition), [B] in nats; its mean over many draws is the bound, but for the
        times below 0.001, a share of about as much."""
        return self._bound(self.codes_of(tokens), condition)

    def exact_bound(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """The bound itself, [B] in nats, summed over all 2^N - 1 ways to hide positions: for a few positions only.

        A set of k hidden positions has the weight of the integral of t^(k-1) (1-t)^(N-k), 1 / (k * (N choose k))."""
        codes, positions = self.codes_of(tokens), self.spec.positions
        total = torch.zeros(len(codes), device=codes.device)
        for count in range(1, positions + 1):
            weight = 1 / (count * math.comb(positions, count))
            for hidden in itertools.combinations(range(positions), count):
                known = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
                known[:, list(hidden)] = False
                total = total + weight * self.nats(codes, known, condition).sum(1)
        return total

    def _bound(self, codes: Tensor, condition: Tensor) -> Tensor:
        rows, device = len(codes), codes.device
        # Which row gets which interval is drawn too: each row on its own has a uniform time, in any order of the data.
        times = (torch.randperm(rows, device=device) + torch.rand(rows, device=device)) / max(rows, 1)
        times = _EARLIEST + (1 - _EARLIEST) * times
        known = torch.rand(codes.shape[:2], device=device) >= times[:, None]
        return self.nats(codes, known, condition).sum(1) / times
