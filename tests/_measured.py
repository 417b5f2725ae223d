"""What metrics measure in tests: a linear tokenizer whose arithmetic does not depend on the batch, a generator, batches."""

from __future__ import annotations

import torch
from torch import Tensor

from components import registry
from components.interfaces import (
    EvaluationBatch,
    Generator,
    ImageFormat,
    Metric,
    Networks,
    Quantizer,
    TokenSpec,
)
from components.tokenizers._images import ImageTokenizer

SPEC = TokenSpec((32,), 4, "grid", grid=(2, 2))

#: one that needs 95 MB of weights and a second for some pictures has tests of its own (test_fid.py)
NAMES = [name for name in registry.names(Metric) if name != "fid"]


class Patches(ImageTokenizer):
    """16 x 16 grey pictures, each 8 x 8 patch a latent of 8 numbers by an orthogonal map, computed in float64."""

    def __init__(self, quantizer: Quantizer | None = None) -> None:
        super().__init__(ImageFormat(16, 1), [], None, None, any_length=False)
        torch.manual_seed(0)
        self.quantizer = quantizer or registry.build(
            Quantizer, {"type": "vq", "codebook_size": 32, "codebook": {"type": "learned"}}, 8
        )
        self.spec = SPEC
        self.map = torch.linalg.qr(torch.randn(64, 8, dtype=torch.float64)).Q

    def latents(self, images: Tensor) -> Tensor:
        rows = images.double().unflatten(3, (2, 8)).unflatten(2, (2, 8))  # [B, 1, 2, 8, 2, 8]
        return rows.permute(0, 2, 4, 1, 3, 5).reshape(len(images), 4, 64) @ self.map

    def draw(self, latents: Tensor) -> Tensor:
        rows = (latents.double() @ self.map.T).view(-1, 2, 2, 1, 8, 8)
        return rows.permute(0, 3, 1, 4, 2, 5).reshape(-1, 1, 16, 16).float()

    def last_weights(self) -> Tensor:
        return self.map


def generator(name: str = "next_token", spec: TokenSpec = SPEC, classes: int = 3) -> Generator:
    torch.manual_seed(1)
    backbone = {"type": "transformer", "depth": 1, "width": 32, "heads": 2}
    made = registry.build(
        Generator, {"type": name, "backbone": backbone, "head": {"type": "categorical"}}, spec, classes
    )
    return made.double().eval()


TOKENIZER, GENERATOR = Patches().eval(), generator()


def build(networks: Networks, name: str, **config: object) -> Metric:
    """The metric with the models that it measures."""
    metric = registry.build(Metric, {"type": name, **config}, networks, SPEC)
    metric.use(TOKENIZER, GENERATOR)
    return metric


def pieces(whole: EvaluationBatch, size: int) -> list[EvaluationBatch]:
    fields = {key: value for key, value in vars(whole).items() if value is not None}
    longest = max(len(v) for v in fields.values())
    return [
        EvaluationBatch(**{k: v[s : s + size] if len(v[s : s + size]) else None for k, v in fields.items()})
        for s in range(0, longest, size)
    ]
