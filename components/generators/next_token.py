"""Next-token prediction: a sample as a sentence of positions in the order of the tokenizer.

1. The sequence is [condition, position 1, ..., position N - 1]; each predicts what stands next: N predictions.
2. The loss is the mean negative log-likelihood of all tokens, teacher-forced in one causal forward.
3. A position of several codes is embedded as their sum and predicted by the head.
4. In training a condition is replaced by the null condition with probability `condition_dropout`, so that one network
   knows p(x | condition) and p(x): what classifier-free guidance needs.
5. Sampling feeds back each position drawn, with the backbone's cache.

Dropout of conditions takes its random numbers from torch's global generator, whose state the trainer saves.
Deliberately absent: other orders (`random_order`), guidance (it belongs to the sampling engine). Sources: Sun et al. 2024,
LlamaGen, https://arxiv.org/abs/2406.06525; dropout of conditions: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from components.generators._of_tokens import CLASS_LABEL, OfTokens
from components.interfaces import Autoregressive, Backbone, Conditioner, Head, TokenSpec
from components.registry import Spec


class NextToken(OfTokens, Autoregressive):
    """
    >>> from components import registry
    >>> spec = TokenSpec((64,), 16, "grid", grid=(4, 4))
    >>> small = {"type": "transformer", "depth": 1, "width": 32, "heads": 2}
    >>> config = {"type": "next_token", "backbone": small, "head": {"type": "categorical"}}
    >>> registry.build(Autoregressive, config, spec, 10).log_probs(torch.zeros(2, 16).long(), torch.tensor([3, 10])).shape
    torch.Size([2, 16])
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
        loss = self._negative_log_likelihood(batch["tokens"], self.condition_of(batch)).mean()
        return {"loss": loss, "bits_per_token": loss.detach() / math.log(2)}

    def log_probs(self, tokens: Tensor, condition: Tensor) -> Tensor:
        return -self._negative_log_likelihood(tokens, condition)

    def begin(self, condition: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Any]:
        first = self.conditioner(condition)  # [B, prefix, W]
        if prefix is not None:
            first = torch.cat([first, self.token_embedding(prefix)], 1)
        cache = self.backbone.new_cache(len(first), first.device, first.dtype)
        return self.backbone(first, cache)[:, -1], cache

    def extend(self, codes: Tensor, state: Any) -> Tensor:
        return self.backbone(self.token_embedding(codes), state)

    def _negative_log_likelihood(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens [B, L] -> nats [B, L]"""
        codes = self.codes_of(tokens)
        first = self.conditioner(condition)  # [B, prefix, W]
        hidden = self.backbone(torch.cat([first, self.token_embedding(codes[:, :-1])], 1))  # [B, prefix + N - 1, W]
        return self.head.loss(hidden[:, first.shape[1] - 1 :], codes).flatten(1)
