"""A real language model as proxy: a small decoder over bytes, trained on draws from the mixture by the one trainer.

1. The texts of a cluster are one stream of bytes, with a zero byte after each text. A training window begins at a random
   place of the stream of a cluster that is drawn by alpha, so shares of bytes are those of the mixture.
2. The decoder is a next-token generator (any backbone and head of the recipe) that knows one class: its embedding says
   that a window begins. Weights and draws follow from the proxy's seed, and it computes in one thread: where it was
   trained changes nothing.
3. Losses are bits per byte of every target text, its windows apart from each other.
Deliberately absent: going on from a pretrained decoder (the paper's proxies do), so mixtures compete from scratch here;
documents that end at a window's edge; an image side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Autoregressive, Generator, Silent, TokenSpec
from components.mixture.problem import Proxy, ProxyData, ProxyTask
from components.registry import Spec, resolve
from components.training.config import Train
from components.training.trainer import train

BYTES = 256
_EVALUATED = 64  # windows at a time
GENERATOR = resolve(
    Generator,
    {
        "type": "next_token",
        "backbone": {"type": "transformer", "depth": 2, "width": 64, "heads": 4},
        "head": {"type": "categorical"},
        "condition_dropout": 0.0,
    },
)
TRAIN = Train(steps=300, batch_size=16, lr=3e-3)


@dataclass(frozen=True)
class Windows:
    """Texts cut to windows: `tokens` [w, L] uint8 (zero after the end), `inside` [w, L], and whose text a window is [w]."""

    tokens: np.ndarray
    inside: np.ndarray
    of_text: np.ndarray
    texts: int

    @classmethod
    def of(cls, texts: list[str], length: int) -> Windows:
        encoded = [np.frombuffer(text.encode(), np.uint8) for text in texts]
        count = [math.ceil(len(data) / length) for data in encoded]
        tokens = np.zeros((sum(count), length), np.uint8)
        inside = np.zeros(tokens.shape, bool)
        for first, number, data in zip(np.cumsum([0, *count[:-1]]), count, encoded, strict=True):
            tokens[first : first + number].reshape(-1)[: len(data)] = data
            inside[first : first + number].reshape(-1)[: len(data)] = True
        return cls(tokens, inside, np.repeat(np.arange(len(texts)), count), len(texts))


@dataclass(frozen=True)
class Draws:
    """Training batches of a mixture: the batch of a step follows from seed and step."""

    streams: list[np.ndarray]  # uint8, one a cluster
    alpha: np.ndarray
    length: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        drawn = rng.choice(len(self.alpha), self.batch_size, p=self.alpha)
        tokens = np.empty((self.batch_size, self.length), np.int64)
        for row, cluster in enumerate(drawn):
            stream = self.streams[cluster]
            start = int(rng.integers(0, len(stream)))
            tokens[row] = stream.take(range(start, start + self.length), mode="wrap")
        return {"tokens": torch.from_numpy(tokens), "labels": torch.zeros(self.batch_size, dtype=torch.int64)}


@dataclass(frozen=True)
class _Task(ProxyTask):
    generator: Spec[Generator]
    train: Train
    final_steps: int
    length: int
    streams: list[np.ndarray]
    search: Windows
    test: Windows

    def search_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        return self._losses(alpha, seed, self.train.steps, self.search)

    def test_losses(self, alpha: np.ndarray, seed: int) -> np.ndarray:
        return self._losses(alpha, seed, self.final_steps, self.test)

    def _losses(self, alpha: np.ndarray, seed: int, steps: int, target: Windows) -> np.ndarray:
        with _alone(seed):
            model = self.generator.build(TokenSpec((BYTES,), self.length, "sequence"), 1)
            if not isinstance(model, Autoregressive):
                raise ValueError(f"proxy.generator: a text's likelihood is needed, '{self.generator.type}' has none")
            config = self.train.model_copy(update={"steps": steps, "checkpoint_every": steps})
            draws = Draws(self.streams, alpha, self.length, config.batch_size, seed)
            with TemporaryDirectory() as folder:  # a proxy that is interrupted begins again
                train(model, draws, config, checkpoints=Path(folder), monitor=Silent(), seed=seed)
            return evaluate(model, target)


@torch.no_grad()
def evaluate(model: Autoregressive, target: Windows) -> np.ndarray:
    """Bits per byte of every text [m]; 0 for an empty one."""
    device = next(model.parameters()).device
    bits = []
    for first in range(0, len(target.tokens), _EVALUATED):
        tokens = torch.from_numpy(target.tokens[first : first + _EVALUATED].astype(np.int64)).to(device)
        labels = torch.zeros(len(tokens), dtype=torch.int64, device=device)
        bits.append(-model.log_probs(tokens, labels).double().cpu().numpy() / math.log(2))
    of_window = (np.concatenate(bits) * target.inside).sum(axis=1)
    size = np.bincount(target.of_text, target.inside.sum(axis=1), target.texts)
    return np.bincount(target.of_text, of_window, target.texts) / np.maximum(size, 1)


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread and random numbers of its own; afterwards both are as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


class SmallTransformer(Proxy[list[str]]):
    """`length`: bytes the decoder sees at once; `train`: of a proxy; the final model is trained for `final_steps`."""

    modality = "text"
    heavy = True

    def __init__(
        self,
        *,
        generator: Spec[Generator] = GENERATOR,
        length: Annotated[int, Field(ge=2)] = 128,
        train: Train = TRAIN,
        final_steps: Annotated[int, Field(ge=1)] = 1500,
    ) -> None:
        self.generator, self.length, self.train, self.final_steps = generator, length, train, final_steps

    def prepare(self, data: ProxyData[list[str]], seed: int) -> ProxyTask:
        of_sample = data.clusters.of_sample
        streams = [
            np.frombuffer(b"".join(data.pool[i].encode() + b"\0" for i in np.flatnonzero(of_sample == k)), np.uint8)
            for k in range(len(data.clusters.sizes))
        ]
        search, test = Windows.of(data.search, self.length), Windows.of(data.test, self.length)
        return _Task(self.generator, self.train, self.final_steps, self.length, streams, search, test)
