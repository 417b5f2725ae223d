"""How much of an image's class can be read off its quantized latents by a linear classifier.

1. The latents of held-out images as the decoder gets them, [N, D], averaged over as small patches of neighbouring positions as
   leave at most `width` numbers in all, N' * D: where a code stands counts, as far as memory allows.
2. At most `images` random ones are kept; every second is for training, the others for the test. The two halves share no image,
   and neither was seen by the tokenizer.
3. Multinomial logistic regression on numbers standardized by the training half, with an L2 penalty (`penalty` / 2 * |W|^2
   beside the mean loss), solved by L-BFGS from zero in float64: convex, so the answer is one.
4. `linear_probe` is the accuracy in the test half with its Wilson interval, `linear_probe.majority` what always guessing the
   most frequent class of the training half would reach there.

The interval is that of the test half, given the classifier. Deliberately absent: a search for the penalty (it would need a third
part), augmentation, and hidden states of generators. Source: Alain and Bengio 2016, https://arxiv.org/abs/1610.01644.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from components.evaluation._reservoir import Reservoir
from components.evaluation.class_accuracy import wilson
from components.interfaces import EvaluationBatch, Generator, Metric, Networks, Quantizer, Tokenizer, TokenSpec
from components.registry import ComponentError
from components.tokenizers._tokens import to_codes

_MOST = 200  # iterations


def pooled(latents: Tensor, grid: tuple[int, int] | None, width: int) -> Tensor:
    """[B, N, D] -> means over patches of neighbouring positions, [B, N' * D], N' * D at most `width`"""
    rows, columns = grid or (1, latents.shape[1])
    spatial = latents.transpose(1, 2).unflatten(2, (rows, columns))  # [B, D, rows, columns]
    room = width // latents.shape[2]
    while rows * columns > room:
        if rows > columns:
            rows -= 1
        else:
            columns -= 1
    return F.adaptive_avg_pool2d(spatial, (rows, columns)).flatten(1)


def logistic(rows: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Rows [n, P] float64 and labels [n] -> weights [P, K] and biases [K] of multinomial logistic regression."""
    weight = torch.zeros(rows.shape[1], classes, dtype=rows.dtype, device=rows.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=rows.dtype, device=rows.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_MOST, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(rows @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()


class LinearProbe(Metric):
    """`width` bounds the numbers of an image that are looked at."""

    better: ClassVar[Literal["higher", "lower"]] = "higher"

    def __init__(
        self,
        networks: Networks,
        spec: TokenSpec,
        *,
        images: Annotated[int, Field(ge=4)] = 10_000,
        width: Annotated[int, Field(ge=1)] = 1024,
        penalty: Annotated[float, Field(gt=0)] = 0.001,
    ) -> None:
        self.spec, self.width, self.penalty = spec, width, penalty
        self.quantizer: Quantizer | None = None
        self.kept = Reservoir(images, 3)  # pooled latents, and the label as the last number

    def use(self, tokenizer: Tokenizer, generator: Generator | None) -> None:
        quantizer = getattr(tokenizer, "quantizer", None)
        if not isinstance(quantizer, Quantizer):
            raise ComponentError(f"{type(tokenizer).__name__} has no quantizer whose latents can be probed", ("type",))
        self.quantizer = quantizer

    @torch.no_grad()
    def update(self, batch: EvaluationBatch) -> None:
        if self.quantizer is None or batch.tokens is None or batch.heldout_labels is None:
            return
        latents = self.quantizer.decode(to_codes(batch.tokens, self.spec)).float()
        if latents.shape[2] > self.width:
            raise ComponentError(f"must be at least the width of a latent, {latents.shape[2]}", ("width",))
        rows = pooled(latents, self.spec.grid, self.width)
        self.kept.update(torch.cat([rows, batch.heldout_labels[:, None].to(rows)], 1), batch.numbers)

    def merge(self, other: Metric) -> None:
        assert isinstance(other, LinearProbe)
        self.kept.merge(other.kept)

    def compute(self) -> dict[str, float]:
        if self.kept.rows is None or len(self.kept.rows) < 4:
            return {}
        rows, labels = self.kept.rows[:, :-1].double(), self.kept.rows[:, -1].long()  # in random order
        train, test = slice(0, None, 2), slice(1, None, 2)
        center, spread = rows[train].mean(0), rows[train].std(0)
        rows = (rows - center) / torch.where(spread > 1e-6, spread, 1.0)
        weight, bias = logistic(rows[train], labels[train], int(labels.max()) + 1, self.penalty)
        right = int(((rows[test] @ weight + bias).argmax(1) == labels[test]).sum())
        total = len(labels[test])
        low, high = wilson(right, total)
        frequent = labels[train].bincount().argmax()
        return {
            "linear_probe": right / total,
            "linear_probe.low": low,
            "linear_probe.high": high,
            "linear_probe.majority": float((labels[test] == frequent).double().mean()),
        }
