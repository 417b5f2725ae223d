"""What generators that fill in positions share: known codes or a mask vector in, a hidden state of every position out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.generators._embedding import CodeEmbedding
from components.interfaces import Backbone, Conditioner, Head, Parallel, SequenceShape, TokenSpec, Visible
from components.registry import Spec


class FillIn(Parallel):
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
        super().__init__()
        self.spec, self.classes, self.condition_dropout = spec, classes, condition_dropout
        self.conditioner = conditioner.build(classes)
        self.backbone = backbone.build(SequenceShape(spec.positions, self.conditioner.length, spec.grid))
        width = self.backbone.width
        self.head = head.build(width, spec)
        self.conditioner.attach(width)
        self.token_embedding = CodeEmbedding(spec, width)
        self.mask_embedding = nn.Parameter(torch.zeros(width))
        self.conditioner.initialize()
        nn.init.normal_(self.token_embedding.weight, std=0.02)
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

    def training_condition(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's condition, some of them dropped in training."""
        condition = batch[self.conditioner.key]
        if self.training and self.condition_dropout:
            return self.conditioner.dropped(condition, self.condition_dropout)
        return condition

    def codes_of(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["tokens"].unflatten(1, (self.spec.positions, self.spec.codes))
