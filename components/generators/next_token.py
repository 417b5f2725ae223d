"""Class-conditional next-token prediction: an image as a sentence of tokens in raster order.

1. The sequence is [class embedding, token 1, ..., token L-1]; position i predicts token i+1: L positions, L tokens.
2. The loss is the mean negative log-likelihood of all tokens, teacher-forced in one causal forward.
3. In training a label is replaced by the null class (index K) with probability `label_dropout`, so that one network
   knows p(x | class) and p(x): what classifier-free guidance needs.
4. Sampling feeds back each token drawn, with the backbone's cache.

Label dropout takes its random numbers from torch's global generator, whose state the trainer saves.
Deliberately absent: other orders than raster, text conditions, guidance (it belongs to the sampling engine). Sources:
Sun et al. 2024, LlamaGen, https://arxiv.org/abs/2406.06525; label dropout: Ho and Salimans 2022,
https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from components.interfaces import Backbone, Generator, Head, TokenSpec
from components.registry import Spec


class NextToken(Generator):
    """
    >>> from components import registry
    >>> spec = TokenSpec(vocabulary=64, length=16, layout="grid", grid=(4, 4))
    >>> small = {"type": "transformer", "depth": 1, "width": 32, "heads": 2}
    >>> config = {"type": "next_token", "backbone": small, "head": {"type": "categorical"}}
    >>> registry.build(Generator, config, spec, 10).log_probs(torch.zeros(2, 16).long(), torch.tensor([3, 10])).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        spec: TokenSpec,
        classes: int,
        *,
        backbone: Spec[Backbone],
        head: Spec[Head],
        label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__()
        self.spec, self.classes, self.label_dropout = spec, classes, label_dropout
        self.backbone = backbone.build(spec.length)
        self.head = head.build(self.backbone.width, spec)
        self.class_embedding = nn.Embedding(classes + 1, self.backbone.width)
        self.token_embedding = nn.Embedding(spec.vocabulary, self.backbone.width)
        for embedding in (self.class_embedding, self.token_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        labels = batch["labels"]
        if self.training and self.label_dropout:
            dropped = torch.rand(labels.shape, device=labels.device) < self.label_dropout
            labels = labels.masked_fill(dropped, self.classes)
        loss = self._negative_log_likelihood(batch["tokens"], labels).mean()
        return {"loss": loss, "bits_per_token": loss.detach() / math.log(2)}

    def log_probs(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return -self._negative_log_likelihood(tokens, labels)

    def begin(self, labels: Tensor) -> tuple[Tensor, Any]:
        first = self.class_embedding(labels)  # [B, W]
        cache = self.backbone.new_cache(len(labels), first.device, first.dtype)
        return self._step(first, cache), cache

    def advance(self, tokens: Tensor, cache: Any) -> Tensor:
        return self._step(self.token_embedding(tokens), cache)

    def _step(self, embedded: Tensor, cache: Any) -> Tensor:
        """[B, W] -> logits [B, V]"""
        return self.head(self.backbone(embedded[:, None], cache)[:, 0])

    def _negative_log_likelihood(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """tokens [B, L], labels [B] -> nats [B, L]"""
        first = self.class_embedding(labels)[:, None]  # [B, 1, W]
        hidden = self.backbone(torch.cat([first, self.token_embedding(tokens[:, :-1])], 1))  # [B, L, W]
        return self.head.loss(hidden, tokens)
