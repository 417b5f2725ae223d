"""Training data in memory, by position: the batch of a step is a pure function of (seed, step), so resuming needs only
the step. What does not fit the memory is read by `components.data.stream`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from components.interfaces import Transform


def to_float(images: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., C, H, W] -> float32 in [-1, 1]."""
    if isinstance(images, Tensor):
        return images.float().div_(127.5).sub_(1.0)
    # NumPy asks the system for huge pages: of a large batch, most of the time would go into getting small ones.
    floats = torch.from_numpy(np.empty(images.shape, np.float32))
    return floats.copy_(torch.from_numpy(images)).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> np.ndarray:
    """float in [-1, 1] -> uint8, rounded and clipped."""
    return images.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def transformed(images: Tensor, transforms: Sequence[Transform], seed: int, step: int) -> Tensor:
    """The images of a step [B, C, H, W] after the section's transforms, whose randomness is a function of (seed, step)."""
    rng = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    for transform in transforms:
        images = transform(images, rng)
    return images


class Draws:
    """Rows drawn with replacement, in proportion to their weights; the same rows for the same seed and step."""

    def __init__(self, rows: int, weights: np.ndarray | None, batch_size: int, seed: int) -> None:
        if not rows:
            raise ValueError("there is nothing to train on: the split is empty")
        weights = np.ones(rows) if weights is None else np.asarray(weights, dtype=np.float64)
        if weights.shape != (rows,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
            raise ValueError(f"expected {rows} weights that are not negative and not all zero, got {weights!r}")
        self.cumulative = np.cumsum(weights) / weights.sum()
        self.batch_size, self.seed = batch_size, seed

    def rows(self, step: int) -> np.ndarray:
        # One stratified point in each of batch_size equal parts: proportions are exact to one draw a batch.
        rng = np.random.default_rng([self.seed, step])
        points = (np.arange(self.batch_size) + rng.random(self.batch_size)) / self.batch_size
        found = np.searchsorted(self.cumulative, points, side="right").clip(max=len(self.cumulative) - 1)
        return rng.permutation(found)


class ImageBatches:
    """{"images": float [B, C, H, W] in [-1, 1], "labels": [B]} with the section's transforms applied."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None,
        batch_size: int,
        seed: int,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.images, self.labels, self.transforms, self.seed = images, labels, transforms, seed
        self.draws = Draws(len(images), weights, batch_size, seed)

    def batch(self, step: int) -> dict[str, Tensor]:
        rows = self.draws.rows(step)
        images = transformed(to_float(self.images[rows]), self.transforms, self.seed, step)
        return {"images": images, "labels": torch.from_numpy(self.labels[rows])}


class TokenBatches:
    """{"tokens": int64 [B, L], "labels": int64 [B]}"""

    def __init__(
        self, tokens: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, batch_size: int, seed: int
    ) -> None:
        self.tokens, self.labels = tokens, labels
        self.draws = Draws(len(tokens), weights, batch_size, seed)

    def batch(self, step: int) -> dict[str, Tensor]:
        rows = self.draws.rows(step)
        return {
            "tokens": torch.from_numpy(self.tokens[rows].astype(np.int64)),
            "labels": torch.from_numpy(self.labels[rows]),
        }
