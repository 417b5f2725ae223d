"""Next-token prediction in any order: trained on permutations that give way to the tokenizer's own order (RAR).

1. A training sample's positions are permuted; with probability r anew, otherwise they stand in the tokenizer's order. r is 1
   until step `anneal_from`, falls linearly, and is 0 from `anneal_to` on.
2. Which position comes next has to be said: every input carries, besides its code and where that stands, the learned
   embedding of the position it predicts.
3. Loss, likelihood and sampling are those of next-token prediction, in the order given; by default the tokenizer's.

Rotary positions of the backbone count the sequence, so what stands where is said by the learned embeddings alone.
Deliberately absent: merging the embeddings after training (RAR does so for speed in the plain order). Source: Yu et al.
2024, RAR, https://arxiv.org/abs/2411.00776, section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from components.generators._of_tokens import CLASS_LABEL, OfTokens
from components.interfaces import Autoregressive, Backbone, Conditioner, Head, TokenSpec
from components.registry import ComponentError, Spec


@dataclass
class Ordered:
    """The state of sampling: the backbone's cache, and the order [B, N] in which positions come."""

    cache: Any
    order: Tensor
    first: int  # positions of the condition in the cache

    @property
    def position(self) -> int:
        return self.cache.position - self.first

    def rewind(self, position: int) -> None:
        self.cache.rewind(self.first + position)

    def repeat(self, times: int) -> Ordered:
        return Ordered(self.cache.repeat(times), self.order.repeat_interleave(times, 0), self.first)


class RandomOrder(OfTokens, Autoregressive):
    """
    >>> from components import registry
    >>> small = {"type": "transformer", "depth": 1, "width": 32, "heads": 2}
    >>> config = {"type": "random_order", "backbone": small, "head": {"type": "categorical"}}
    >>> model = registry.build(Autoregressive, config, TokenSpec((64,), 16, "sequence"), 10)
    >>> model.log_probs(torch.zeros(2, 16).long(), torch.tensor([3, 10])).shape
    torch.Size([2, 16])
    """

    randomness: Tensor  # [] the probability r of the next step

    def __init__(
        self,
        spec: TokenSpec,
        classes: int,
        *,
        backbone: Spec[Backbone],
        head: Spec[Head],
        conditioner: Spec[Conditioner] = CLASS_LABEL,
        condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        anneal_from: Annotated[int, Field(ge=0, description="step")] = 250_000,
        anneal_to: Annotated[int, Field(ge=0, description="step")] = 375_000,
    ) -> None:
        if anneal_to < anneal_from:
            raise ComponentError(f"must not be before anneal_from ({anneal_from}), got {anneal_to}", ("anneal_to",))
        super().__init__(spec, classes, backbone, head, conditioner, condition_dropout)
        self.anneal_from, self.anneal_to = anneal_from, anneal_to
        width = self.backbone.width
        self.where, self.next = nn.Embedding(spec.positions, width), nn.Embedding(spec.positions, width)
        for table in (self.where, self.next):
            nn.init.normal_(table.weight, std=0.02)
        self.register_buffer("randomness", torch.tensor(self._share(0)))

    def after_step(self, step: int) -> None:
        self.randomness.fill_(self._share(step + 1))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        condition = self.condition_of(batch)
        order = self.draw_order(len(condition), condition.device) if self.training else None
        loss = -self.log_probs(batch["tokens"], condition, order).mean()
        return {"loss": loss, "bits_per_token": loss.detach() / math.log(2)}

    def draw_order(self, rows: int, device: torch.device) -> Tensor:
        """[rows, N]: with probability `randomness` a permutation, otherwise the tokenizer's order."""
        plain = torch.arange(self.spec.positions, device=device).expand(rows, -1)
        permuted = torch.rand(plain.shape, device=device).argsort(1)
        return torch.where((torch.rand(rows, device=device) < self.randomness)[:, None], permuted, plain)

    def log_probs(self, tokens: Tensor, condition: Tensor, order: Tensor | None = None) -> Tensor:
        """log p(code | what came before it in `order` [B, N], condition), [B, L], where the tokens stand."""
        codes = self.codes_of(tokens)
        order = self._plain(len(codes), codes.device) if order is None else order
        index = order[..., None].expand_as(codes)
        in_order = codes.gather(1, index)
        hidden, _ = self._read(condition, in_order[:, :-1], order, None)
        nats = self.head.loss(hidden, in_order)
        return -torch.zeros_like(nats).scatter(1, index, nats).flatten(1)

    def begin(self, condition: Tensor, prefix: Tensor | None = None, order: Tensor | None = None) -> tuple[Tensor, Any]:
        order = self._plain(len(condition), condition.device) if order is None else order
        prefix = (
            condition.new_zeros(len(condition), 0, self.spec.codes, dtype=torch.int64) if prefix is None else prefix
        )
        device, dtype = self.where.weight.device, self.where.weight.dtype
        cache = self.backbone.new_cache(len(condition), device, dtype)
        hidden, first = self._read(condition, prefix, order, cache)
        return hidden[:, -1], Ordered(cache, order, first)

    def extend(self, codes: Tensor, state: Ordered) -> Tensor:
        return self.backbone(self._embedded(codes, state.order, state.position), state.cache)

    def arrange(self, codes: Tensor, state: Ordered | None) -> Tensor:
        if state is None:
            return codes
        index = state.order[: len(codes), :, None].expand_as(codes)
        return torch.zeros_like(codes).scatter(1, index, codes)

    def _read(self, condition: Tensor, codes: Tensor, order: Tensor, cache: Any) -> tuple[Tensor, int]:
        """Condition and codes [B, T, G] in the order -> (hidden states [B, T + 1, W] of what comes next each time, how
        many positions of the sequence came before the first code)."""
        first = self.conditioner(condition)
        first = torch.cat([first[:, :-1], first[:, -1:] + self.next(order[:, :1])], 1)  # what stands first is next
        hidden = self.backbone(torch.cat([first, self._embedded(codes, order, 0)], 1), cache)
        return hidden[:, first.shape[1] - 1 :], first.shape[1]

    def _embedded(self, codes: Tensor, order: Tensor, start: int) -> Tensor:
        """Codes [B, T, G] that stand `start` and further in the order -> [B, T, W]"""
        stop = start + codes.shape[1]
        here, after = order[:, start:stop], order[:, start + 1 : stop + 1]
        if after.shape[1] < here.shape[1]:  # nothing comes after the last
            after = torch.cat([after, here[:, -1:]], 1)
        return self.token_embedding(codes) + self.where(here) + self.next(after)

    def _plain(self, rows: int, device: torch.device) -> Tensor:
        return torch.arange(self.spec.positions, device=device).expand(rows, -1)

    def _share(self, step: int) -> float:
        if step >= self.anneal_to:
            return 0.0
        return 1.0 if step <= self.anneal_from else (self.anneal_to - step) / (self.anneal_to - self.anneal_from)
