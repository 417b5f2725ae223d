"""Training data that need not fit the memory, by position: streams over shards, and the batches of steps from them.

1. A stream is an endless shuffled order of samples (`order.Shuffle`); positions start, ..., stop - 1 can be had at any
   time, so the batch of a step is a pure function of the step. Only the shards of the windows in use are in memory.
2. Having samples is done in two steps: `read` gets what is stored (quick, needs the shards), `make` turns it into tensors
   (decoding, needs nothing but its argument), so that other processes can do the second (`prefetch.Prefetch`).
3. `Mixed` takes samples from several streams in exact proportions; each goes on at its own position.
4. `StreamBatches` cuts the order into batches and transforms them; with several ranks each decodes only its own rows.
Absent on purpose: a state to be saved (the step is all), and draws with replacement (`batches.Draws`, in memory).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from components.data.batches import to_float, transformed
from components.data.order import Proportions
from components.interfaces import Transform

R = TypeVar("R")


class Stream(ABC, Generic[R]):
    """Samples in an endless order. `R` is what is stored of some of them; it can be sent to another process."""

    length: int  # samples of an epoch

    @abstractmethod
    def read(self, start: int, stop: int) -> R:
        """What is stored of the samples at positions start, ..., stop - 1."""

    @abstractmethod
    def make(self, stored: R) -> dict[str, Tensor]:
        """Tensors of these samples, the first dimension counts them."""

    def take(self, start: int, stop: int) -> dict[str, Tensor]:
        """The samples at positions start, ..., stop - 1."""
        return self.make(self.read(start, stop))


class StreamBatches(Generic[R]):
    """The batches of steps: `batch_size` samples each, one batch after the other in the order of the stream. Images become
    float in [-1, 1] and go through the transforms.

    With several ranks (`world`) a batch has its whole shape everywhere, but only the contiguous part that the trainer
    takes for this `rank` is read and decoded; the others are empty. So the transforms, which are applied to all, draw
    the same numbers for a sample whatever the number of ranks. Raises ValueError when a batch cannot be split evenly."""

    def __init__(
        self,
        stream: Stream[R],
        batch_size: int,
        seed: int,
        transforms: Sequence[Transform] = (),
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"batch_size {batch_size} can't be split evenly over {world} processes; make it a multiple"
            )
        self.stream, self.batch_size, self.seed, self.transforms = stream, batch_size, seed, transforms
        self.rank, self.world = rank, world

    def batch(self, step: int) -> dict[str, Tensor]:
        return self.finish(self.make(step, self.read(step)))

    def read(self, step: int) -> R:
        """What is stored of this rank's samples of a step."""
        own = self.batch_size // self.world
        start = step * self.batch_size + self.rank * own
        return self.stream.read(start, start + own)

    def make(self, step: int, stored: R) -> dict[str, Tensor]:
        """The batch of a step from what `read` gave for it. Without transforms it is not yet finished: own rows only, and
        images as bytes, a quarter of the floats, for they may have a way to go."""
        batch = self.stream.make(stored)
        if self.transforms:
            batch = self._whole(batch)
            batch["images"] = transformed(to_float(batch["images"].numpy()), self.transforms, self.seed, step)
        return batch

    def finish(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as the trainer gets it."""
        if self.transforms:
            return made
        batch = self._whole(made)
        return {**batch, "images": to_float(batch["images"].numpy())} if "images" in batch else batch

    def _whole(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's rows in their places in the batch."""
        if self.world == 1:
            return own
        size = self.batch_size // self.world
        batch = {name: rows.new_zeros((self.batch_size, *rows.shape[1:])) for name, rows in own.items()}
        for name, rows in own.items():
            batch[name][self.rank * size : (self.rank + 1) * size] = rows
        return batch


class Mixed(Stream[tuple[np.ndarray, list[tuple[int, Any]]]]):
    """Samples of several streams, by `weights` in exact proportions (`order.Proportions`).

    An epoch has no meaning here: each part begins anew when it is through; `length` is the samples of all parts. Each part
    has windows of its own, so give them a share of the memory each."""

    def __init__(
        self, parts: Sequence[Stream[Any]], weights: Sequence[float] | np.ndarray, seed: int, *, block: int = 1 << 16
    ) -> None:
        if len(parts) != len(weights):
            raise ValueError(f"expected one weight for each of {len(parts)} parts, got {len(weights)}")
        self.parts, self.proportions = parts, Proportions(weights, seed, block=block)
        self.length = sum(part.length for part in parts)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, list[tuple[int, Any]]]:
        """(the part of each position [n], what is stored of the samples of each part that occurs)"""
        chosen, places = self.proportions.where(start, stop)
        found = []
        for part in np.unique(chosen).tolist():
            mine = places[chosen == part]
            found.append((part, self.parts[part].read(int(mine[0]), int(mine[-1]) + 1)))
        return chosen, found

    def make(self, stored: tuple[np.ndarray, list[tuple[int, Any]]]) -> dict[str, Tensor]:
        chosen, found = stored
        pieces = [(part, self.parts[part].make(piece)) for part, piece in found]
        first = pieces[0][1]
        batch = {name: tensor.new_empty((len(chosen), *tensor.shape[1:])) for name, tensor in first.items()}
        for part, piece in pieces:
            if piece.keys() != batch.keys():
                raise ValueError(f"parts of a mixture differ: {sorted(batch)} and, in part {part}, {sorted(piece)}")
            for name, tensor in piece.items():
                batch[name][torch.from_numpy(chosen == part)] = tensor
        return batch
