"""What generators that fill in positions share: known codes or a mask vector in, a hidden state of every position out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.generators._of_tokens import OfTokens
from components.interfaces import Backbone, Conditioner, Head, Parallel, TokenSpec, Visible
from components.registry import Spec


class FillIn(OfTokens, Parallel):
    """The network; a subclass says how training hides positions and weighs them, in `forward`."""

    def __init__(
        self,
        spec: TokenSpec,
        classes: int,
        backbone: Spec[Backbone],
        head: Spec[Head],
        conditioner: Spec[Conditioner],
        condition_dropout: float,
    ) -> None:
        super().__init__(spec, classes, backbone, head, conditioner, condition_dropout)
        self.mask_embedding = nn.Parameter(torch.zeros(self.backbone.width))
        nn.init.normal_(self.mask_embedding, std=0.02)

    def predict(self, codes: Tensor, known: Tensor, condition: Tensor) -> Tensor:
        # The codes of hidden positions may be anything: zeros are looked up in their place, and not used.
        embedded = self.token_embedding(codes.masked_fill(~known[..., None], 0))
        embedded = torch.where(known[..., None], embedded, self.mask_embedding)
        first = self.conditioner(condition)
        return self.backbone(torch.cat([first, embedded], 1), mask=Visible.ALL)[:, first.shape[1] :]

    def nats(self, codes: Tensor, known: Tensor, condition: Tensor) -> Tensor:
        """-log p of each hidden position's codes given the known ones, [B, N]; 0 where known"""
        loss = self.head.loss(self.predict(codes, known, condition), codes).sum(-1)
        return loss.masked_fill(known, 0)
