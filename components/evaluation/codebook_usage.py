"""How much of the vocabulary the tokenizer uses on held-out images.

`codebook_usage` is the share of the V tokens that occur at all; `codebook_perplexity` = exp(entropy of the token
frequencies, nats), between 1 (one token for everything) and V (all equally often). Both are taken over all positions
together. Usage grows with the number of images, so compare it at equal numbers only. Deliberately absent: a value for
each position.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec
from components.quantizers._codebook import usage


class CodebookUsage(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, networks: Networks, spec: TokenSpec) -> None:
        self.counts = torch.zeros(spec.vocabulary, dtype=torch.int64)

    def update(self, batch: EvaluationBatch) -> None:
        if batch.tokens is not None:
            self.counts += torch.bincount(batch.tokens.flatten().cpu(), minlength=len(self.counts))

    def merge(self, other: Metric) -> None:
        assert isinstance(other, CodebookUsage)
        self.counts += other.counts

    def compute(self) -> dict[str, float]:
        if not self.counts.sum():
            return {}
        share, perplexity = usage(self.counts)
        return {"codebook_usage": share, "codebook_perplexity": perplexity}
