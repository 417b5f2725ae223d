"""Which device this process computes on, and its place among the processes that train together.

Everything here works alike without `torch.distributed`: one process, rank 0. What is not a gradient and must agree
between processes (statistics of codebooks, candidates for revival) goes through `all_sum` and `all_gather`."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def device() -> torch.device:
    """The accelerator of this process when there is one, otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank() % torch.cuda.device_count())))
    return torch.device("cpu")


def active() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    return distributed.get_rank() if active() else 0


def world() -> int:
    return distributed.get_world_size() if active() else 1


def barrier() -> None:
    if active():
        distributed.barrier()


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if active():
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """[n, ...] of each process -> [world * n, ...] in the order of ranks, which is the order of the global batch."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def from_first(value: T) -> T:
    """The value that rank 0 has, on every rank."""
    if not active():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def of_all(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    if not active():
        return [value]
    values: list[T] = [value] * world()
    distributed.all_gather_object(values, value)
    return values


def own_part(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's contiguous, equal part of a global batch; ValueError when it can't be split evenly."""
    parts = world()
    if parts == 1:
        return batch
    sizes = {name: len(tensor) for name, tensor in batch.items()}
    if any(size % parts for size in sizes.values()):
        raise ValueError(f"a batch of {sizes} can't be split evenly over {parts} processes; make batch_size a multiple")
    return {name: tensor.chunk(parts)[rank()] for name, tensor in batch.items()}
