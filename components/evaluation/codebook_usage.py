"""How much of the vocabulary the tokenizer uses on held-out images.

`codebook_usage` is the share of the codes that occur at all; `codebook_perplexity` = exp(entropy of the code
frequencies, nats), between 1 (one token for everything) and V (all equally often). Both are taken over all positions
together. Usage grows with the number of images, so compare it at equal numbers only. Deliberately absent: a value for
each position.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from components.interfaces import EvaluationBatch, Metric, Networks, TokenSpec
from components.tokenizers._tokens import Counts


class CodebookUsage(Metric):
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(self, networks: Networks, spec: TokenSpec) -> None:
        self.counts = Counts(spec)

    def update(self, batch: EvaluationBatch) -> None:
        if batch.tokens is not None:
            self.counts.see(batch.tokens)

    def merge(self, other: Metric) -> None:
        assert isinstance(other, CodebookUsage)
        self.counts.merge(other.counts)

    def compute(self) -> dict[str, float]:
        if not self.counts:
            return {}
        share, perplexity = self.counts.usage()
        return {"codebook_usage": share, "codebook_perplexity": perplexity}
