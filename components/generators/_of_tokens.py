"""What every generator of tokens is wired from: a condition, the embedding of codes, a backbone and a head."""

from __future__ import annotations

from torch import Tensor, nn

from components.generators._embedding import CodeEmbedding
from components.interfaces import Backbone, Conditioner, Generator, Head, SequenceShape, TokenSpec
from components.registry import ComponentError, Spec, lookup, resolve

CLASS_LABEL = resolve(Conditioner, {"type": "class_label"})


class OfTokens(Generator):
    """A subclass says what is predicted from what, in `forward`. The order here is the order of the initial weights."""

    spec: TokenSpec

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
        if lookup(Head, head.type).continuous:
            raise ComponentError(f"'{head.type}' draws latents, not codes; choose a head of codes", ("head", "type"))
        self.spec, self.classes, self.condition_dropout = spec, classes, condition_dropout
        self.conditioner = conditioner.build(classes)
        self.backbone = backbone.build(SequenceShape(spec.positions, self.conditioner.length, spec.grid))
        self.head = head.build(self.backbone.width, spec)
        self.conditioner.attach(self.backbone.width)
        self.token_embedding = CodeEmbedding(spec, self.backbone.width)
        self.conditioner.initialize()
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def codes_of(self, tokens: Tensor) -> Tensor:
        """[B, L] -> [B, N, G]"""
        return tokens.unflatten(1, (self.spec.positions, self.spec.codes))
