"""How a training is computed, as opposed to what is trained: it changes speed and memory. It is no part of a recipe and of no
stage key.

1. `micro_batch`: a process takes its part of the batch in pieces of at most so many samples and adds up the gradients. For
   a loss that is a mean over samples and draws nothing at random that is the gradient of the batch; a mean over what
   differs from sample to sample (hidden positions), or of a function of the whole batch (an entropy), becomes a mean of
   the pieces', and each piece has random numbers of its own.
2. `sharding`: `replicated` (DDP: every process has all weights) or `sharded` (FSDP2: each has a part of weights, gradients
   and optimizer state, and gathers a block's weights while it computes it).
3. `recompute`: activations inside blocks are computed again in the backward pass instead of being kept.
4. `compiled`: forward and backward through torch.compile.

Blocks are the entries of every `nn.ModuleList` called `blocks`. Sources: FSDP2, https://arxiv.org/abs/2304.11277 and PyTorch's
`fully_shard`; recomputation: Chen et al. 2016, https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from components.training import distributed
from components.training.checkpoints import Stored


@dataclass(frozen=True)
class Placement:
    micro_batch: int | None = None  # samples of a process at a time; None: all of its part
    sharding: Literal["replicated", "sharded"] = "replicated"
    recompute: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {self.micro_batch}")

    def pieces(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The part of a process in pieces of at most `micro_batch` samples."""
        size = len(next(iter(batch.values())))
        if self.micro_batch is None or self.micro_batch >= size:
            return [batch]
        parts = {name: tensor.split(self.micro_batch) for name, tensor in batch.items()}
        count = len(next(iter(parts.values())))
        return [{name: tensors[piece] for name, tensors in parts.items()} for piece in range(count)]


def blocks(method: nn.Module) -> Iterator[nn.Module]:
    for module in method.modules():
        found = getattr(module, "blocks", None)
        if isinstance(found, nn.ModuleList):
            yield from found


class Placed:
    """A method as it is computed: `forward(batch)` gives its losses."""

    def __init__(self, method: nn.Module, placement: Placement, device: torch.device) -> None:
        self.method, self.shards = method, placement.sharding == "sharded" and distributed.active()
        if placement.recompute:
            for block in blocks(method):
                _recompute(block)
        if self.shards:
            _shard(method)
        forward: Callable[..., Any] = method
        self.ddp: DistributedDataParallel | None = None
        if distributed.active() and not self.shards:
            ids = [device.index] if device.type == "cuda" else None
            # Buffers need no broadcast: codebook statistics are summed over the ranks by their owners.
            self.ddp = DistributedDataParallel(method, device_ids=ids, broadcast_buffers=False)
            forward = self.ddp
        self.forward = torch.compile(forward) if placement.compiled else forward

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.forward(batch)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a piece: gradients are exchanged with the last one only."""
        if self.shards:
            self.method.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if self.ddp is None or last else self.ddp.no_sync()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, on every process; any other one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(stored: Stored, name: str, tensor: Tensor) -> Tensor:
    """A stored tensor as `tensor` is: on its device, and of one that is sharded by rows only those that are here."""
    if not hasattr(tensor, "to_local"):
        return stored[name].to(tensor.device)
    from torch.distributed.tensor import DTensor

    local = tensor.to_local()
    size = -(-tensor.shape[0] // distributed.world())  # rows of a process; the last ones may have fewer
    start = min(distributed.rank() * size, tensor.shape[0])
    here = stored.rows(name, start, start + len(local)).to(local.device)
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return DTensor.from_local(here, mesh, placements, shape=tensor.shape, stride=tensor.stride())


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def again(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, **named)

    block.__dict__["forward"] = again


def _shard(method: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(distributed.device().type, (distributed.world(),))
    for block in blocks(method):
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
