"""What the training stages draw from: the pool by the mixture's weights, and the target's share beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from components.interfaces import Files
    from flows.context import StageContext


def mixture_weights(ctx: StageContext, train: int, target: int) -> np.ndarray:
    """The probability of each row of [train, target], sum 1. Without a mixture: every train row alike, no target row."""
    if not ctx.has("mixture"):
        return np.concatenate([np.full(train, 1.0 / max(train, 1)), np.zeros(target)])
    pool = np.load(ctx.input("mixture") / "sample_weights.npy")
    share = json.loads((ctx.input("mixture") / "mixture.json").read_text())["target_share"] if target else 0.0
    return np.concatenate([pool / pool.sum() * (1 - share), np.full(target, share / max(target, 1))])


def training_images(ctx: StageContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images uint8 [n, C, S, S], labels [n], weights [n]) of the data set's train and target splits."""
    from components.data.shards import load_split

    train, target = (load_split(ctx.files("dataset"), split) for split in ("train", "target"))
    weights = mixture_weights(ctx, len(train.images), len(target.images))
    images, labels = np.concatenate([train.images, target.images]), np.concatenate([train.labels, target.labels])
    return images, labels, weights


def training_tokens(ctx: StageContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens [n, L], labels [n], weights [n]) of the same rows."""
    train, target = (load_tokens(ctx.files("tokens"), split) for split in ("train", "target"))
    weights = mixture_weights(ctx, len(train[0]), len(target[0]))
    return np.concatenate([train[0], target[0]]), np.concatenate([train[1], target[1]]), weights


def load_tokens(files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [n, L], labels [n]) of a split in memory; of a split that is not there, none."""

    def arrays(kind: str) -> list[np.ndarray]:
        names = [name for name in files.names() if name.endswith(f".{kind}.npy")]
        return [np.load(files.path(name)) for name in names if name.startswith(f"{split}/")] or [
            np.load(files.path(names[0]))[:0]
        ]

    return np.concatenate(arrays("tokens")), np.concatenate(arrays("labels"))
