"""Several codes of a position one after another, by a small causal transformer over them (TokenBridge's channel head).

1. The hidden state conditions every layer (adaptive norms) and is the first input; input g + 1 is the embedding of code g.
2. Each code has its own embedding table and its own output layer.
3. Codes are predicted in a stored order, `order`, for instance by the energy of their low frequencies (`set_order`).
4. Sampling goes code by code with a cache of keys and values.

With groups of a lookup-free quantizer as codes this is WeTok's factorised head. Deliberately absent: sharing of tables,
estimation of the order (it is measured on data and handed in). Sources: Wang et al. 2025, TokenBridge,
https://arxiv.org/abs/2503.16430, section 3.3; Zhuang et al. 2025, WeTok, https://arxiv.org/abs/2508.05599.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.backbones.modulated_transformer import ModulatedTransformer
from components.interfaces import Draw, Head, SequenceShape, TokenSpec
from components.registry import ComponentError


class ChannelAutoregressive(Head):
    """
    >>> head = ChannelAutoregressive(32, TokenSpec((8, 8, 8), 16, "sequence"), depth=1, inner_width=16, heads=2)
    >>> head.loss(torch.zeros(2, 16, 32), torch.zeros(2, 16, 3).long()).shape
    torch.Size([2, 16, 3])
    """

    order: Tensor  # [G], the g-th to be predicted is code order[g]

    def __init__(
        self,
        width: int,
        spec: TokenSpec,
        *,
        depth: Annotated[int, Field(ge=1)] = 4,
        inner_width: Annotated[int, Field(ge=8)] = 256,
        heads: Annotated[int, Field(ge=1)] = 4,
    ) -> None:
        super().__init__()
        sizes = spec.codebook_sizes
        if len(sizes) == 1:
            raise ComponentError("positions of one code have no order of codes: choose 'categorical'", ("type",))
        shape = SequenceShape(len(sizes))
        self.backbone = ModulatedTransformer(shape, depth=depth, width=inner_width, heads=heads)
        self.condition = nn.Linear(width, inner_width)
        self.start = nn.Linear(width, inner_width)
        # All tables are rows of one, and all output layers; the table of the code that comes last is then no parameter
        # without a gradient.
        self.table = nn.Embedding(sum(sizes), inner_width)
        self.project = nn.Linear(inner_width, sum(sizes), bias=False)
        for part in (self.table, self.project):
            nn.init.normal_(part.weight, std=0.02)
        self.begins = [sum(sizes[:code]) for code in range(len(sizes) + 1)]
        self.register_buffer("order", torch.arange(len(sizes)))

    def set_order(self, order: Tensor) -> None:
        """Codes are predicted in this order, a permutation of range(G), from now on."""
        if sorted(order.tolist()) != list(range(len(self.order))):
            raise ValueError(f"expected a permutation of {len(self.order)} codes, got {order.tolist()}")
        self.order.copy_(order)

    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        flat, wanted = hidden.flatten(0, -2), codes.flatten(0, -2)  # [R, W], [R, G]
        order = self.order.tolist()
        embedded = [self.table(wanted[:, code] + self.begins[code]) for code in order[:-1]]
        inside = self.backbone(torch.stack([self.start(flat), *embedded], 1), condition=self.condition(flat))
        losses: list[Tensor] = [flat.new_empty(0)] * len(order)
        for place, code in enumerate(order):
            logits = self._logits(inside[:, place], code).float()
            losses[code] = F.cross_entropy(logits, wanted[:, code], reduction="none")
        return torch.stack(losses, -1).view(codes.shape)

    def sample(self, hidden: Tensor, draw: Draw) -> Tensor:
        cache = self.backbone.new_cache(len(hidden), hidden.device, hidden.dtype)
        condition, current = self.condition(hidden), self.start(hidden)
        codes = torch.empty(len(hidden), len(self.order), dtype=torch.int64, device=hidden.device)
        for code in self.order.tolist():
            inside = self.backbone(current[:, None], cache, condition=condition)[:, 0]
            codes[:, code] = draw(self._logits(inside, code))
            current = self.table(codes[:, code] + self.begins[code])
        return codes

    def _logits(self, inside: Tensor, code: int) -> Tensor:
        """[R, inner width] -> [R, K of this code]"""
        return F.linear(inside, self.project.weight[self.begins[code] : self.begins[code + 1]])
