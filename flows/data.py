"""What the training stages draw from: the pool by the mixture's weights, and the target's share beside it.

Data that fit into `train.memory_mb` are drawn from memory, row by row with their weights. Larger data are streamed from
their shards (`components.data.stream`): rows of equal weight are a part, parts come in exact proportions, and other
processes decode ahead. Which of the two it is depends on the data and the recipe alone, never on the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from components.data.stream import Stream
    from components.interfaces import Batches, Files, Transform
    from components.training.config import Train
    from flows.context import StageContext

_SPLITS = ("train", "target")
_AHEAD = 8  # batches


def mixture_weights(ctx: StageContext, train: int, target: int) -> np.ndarray:
    """The probability of each row of [train, target], sum 1. Without a mixture: every train row alike, no target row."""
    if not ctx.has("mixture"):
        return np.concatenate([np.full(train, 1.0 / max(train, 1)), np.zeros(target)])
    pool = np.load(ctx.input("mixture") / "sample_weights.npy")
    share = json.loads((ctx.input("mixture") / "mixture.json").read_text())["target_share"] if target else 0.0
    return np.concatenate([pool / pool.sum() * (1 - share), np.full(target, share / max(target, 1))])


class TrainingImages:
    """The train and target splits of a data set with a weight for each of their rows [train + target]; rows of weight zero
    are not there."""

    def __init__(self, files: Files, weights: np.ndarray) -> None:
        from components.data.shards import describe, image_format

        self.files, self.weights = files, weights
        self.about, self.image = describe(files), image_format(files)

    @classmethod
    def of_mixture(cls, ctx: StageContext) -> TrainingImages:
        """Every row as the mixture of the run weighs it."""
        from components.data.shards import describe

        files = ctx.files("dataset")
        splits = describe(files)["splits"]
        counts = (splits[split]["rows"] if split in splits else 0 for split in _SPLITS)
        return cls(files, mixture_weights(ctx, *counts))

    @cached_property
    def decoded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images uint8 [n, C, S, S], labels [n], weights [n]) in memory."""
        from components.data.shards import load_split

        splits = [load_split(self.files, split) for split in _SPLITS]
        images, labels = (np.concatenate([getattr(split, part) for split in splits]) for part in ("images", "labels"))
        wanted = self.weights > 0
        return images[wanted], labels[wanted], self.weights[wanted]

    @contextmanager
    def batches(self, config: Train, seed: int, transforms: Sequence[Transform] = ()) -> Iterator[Batches]:
        """Batches for a training; their processes, if they have any, end with the context."""
        from components.data.batches import ImageBatches
        from components.data.image_stream import ImageStream, rows_of
        from components.data.prefetch import Prefetch
        from components.data.stream import StreamBatches
        from components.training import distributed

        if _fits(len(self.weights) * self.image.channels * self.image.size**2, config):
            yield ImageBatches(*self.decoded, config.batch_size, seed, transforms)
            return
        rows = {split: rows_of(self.files, split) if split in self.about["splits"] else {} for split in _SPLITS}
        stream = _stream(rows, self.weights, partial(ImageStream, self.files, self.about), config, seed)
        rank, world = distributed.rank(), distributed.world()
        batches = StreamBatches(stream, config.batch_size, seed, transforms, rank=rank, world=world)
        workers = max(1, (os.cpu_count() or 1) // world - 1)  # beside the trainer itself; they only decode
        with Prefetch(batches, depth=_AHEAD, workers=workers) as ahead:
            yield ahead


def token_batches(ctx: StageContext, config: Train) -> Batches:
    """Batches of tokens."""
    from components.data import token_stream
    from components.data.batches import TokenBatches
    from components.data.stream import StreamBatches
    from components.interfaces import TokenSpec
    from components.training import distributed

    files = ctx.files("tokens")
    counted = {split: token_stream.rows_of(files, split) for split in _SPLITS}
    length = TokenSpec.of(json.loads(files.path("tokens.json").read_text())["spec"]).length
    if _fits(sum(sum(rows.values()) for rows in counted.values()) * length * 4, config):  # at most four bytes a token
        return TokenBatches(*training_tokens(ctx), config.batch_size, ctx.seed)
    weights = mixture_weights(ctx, *(sum(counted[split].values()) for split in _SPLITS))
    stream = _stream(counted, weights, partial(token_stream.TokenStream, files), config, ctx.seed)
    rank, world = distributed.rank(), distributed.world()
    return StreamBatches(stream, config.batch_size, ctx.seed, rank=rank, world=world)


def _fits(size: int, config: Train) -> bool:
    return size <= config.memory_mb << 20


def _stream(
    rows: Mapping[str, Mapping[str, int]],
    weights: np.ndarray,
    of: Callable[..., Stream[Any]],
    config: Train,
    seed: int,
) -> Stream[Any]:
    """A stream over the splits (`rows`: split -> shard -> rows) in the proportions of the weights [train + target]."""
    from components.data.order import parts_by_weight
    from components.data.stream import Mixed

    train = sum(rows["train"].values())
    parts = [
        (weight, split, chosen)
        for split, own in (("train", weights[:train]), ("target", weights[train:]))
        for weight, chosen in parts_by_weight(rows[split], own)
    ]
    window = max((config.window_mb << 20) // len(parts), 1)
    streams = [of(split, seed=seed, window=window, rows=chosen) for _, split, chosen in parts]
    return streams[0] if len(streams) == 1 else Mixed(streams, [weight for weight, _, _ in parts], seed)


def training_tokens(ctx: StageContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens [n, L], labels [n], weights [n]) of the same rows."""
    train, target = (load_tokens(ctx.files("tokens"), split) for split in _SPLITS)
    weights = mixture_weights(ctx, len(train[0]), len(target[0]))
    return np.concatenate([train[0], target[0]]), np.concatenate([train[1], target[1]]), weights


def load_tokens(files: Files, split: str, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [n, L], labels [n]) of a split in memory, at `most` its first so many; of a split that is not there, none."""
    names = [name.removesuffix(".tokens.npy") for name in files.names() if name.endswith(".tokens.npy")]
    mine = [name for name in names if name.startswith(f"{split}/")]
    tokens: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for name in mine or names[:1]:
        left = 0 if not mine else None if most is None else most - sum(len(part) for part in tokens)
        tokens.append(np.load(files.path(f"{name}.tokens.npy"), mmap_mode="r")[:left])
        labels.append(np.load(files.path(f"{name}.labels.npy"), mmap_mode="r")[:left])
        if left is not None and len(tokens[-1]) == left:
            break
    return np.concatenate(tokens), np.concatenate(labels)
