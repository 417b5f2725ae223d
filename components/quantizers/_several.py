"""Quantizers made of several codebooks: what happens around a step happens to each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from components.interfaces import (
    Assignment,
    Codebook,
    GradientEstimator,
    Quantizer,
    Regularizer,
    Revival,
)
from components.quantizers._use import CodeUse, together
from components.quantizers.vq import VQ
from components.registry import Spec


class Uses(nn.Module):
    """Counts what is used of several codebooks. A subclass says their sizes once, and in training what it sees of each."""

    codebook_sizes: tuple[int, ...]

    def count(self, sizes: Sequence[int]) -> None:
        self.codebook_sizes = tuple(sizes)
        self.uses = [CodeUse(size) for size in sizes]
        self.use = nn.ModuleList(self.uses)

    def statistics(self) -> dict[str, float]:
        return together([use.statistics() for use in self.uses])

    def before_step(self, step: int) -> None:
        for use in self.uses:
            use.forget()

    def after_step(self, step: int) -> None:
        for use in self.uses:
            use.take()


class OfUses(Uses, Quantizer):
    """Without stored codebooks: only what is used is counted."""


class OfVQs(Quantizer):
    """Of several `vq` of one configuration."""

    parts: list[VQ]

    @staticmethod
    def make(
        count: int,
        dim: int,
        codebook_size: int,
        codebook: Spec[Codebook],
        assignment: Spec[Assignment],
        gradient: Spec[GradientEstimator],
        regularizers: list[Spec[Regularizer]],
        revival: Spec[Revival] | None,
    ) -> list[VQ]:
        chosen = {
            "codebook": codebook,
            "assignment": assignment,
            "gradient": gradient,
            "regularizers": regularizers,
            "revival": revival,
        }
        return [VQ(dim, codebook_size=codebook_size, **chosen) for _ in range(count)]  # type: ignore[arg-type]

    def statistics(self) -> dict[str, float]:
        return together([part.statistics() for part in self.parts])

    def before_step(self, step: int) -> None:
        for part in self.parts:
            part.before_step(step)

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)
