"""Keys and values of positions already seen, in memory that is taken once.

`KVCache` gives attention a view of what is filled, so that a step costs what has been seen and no more. `FixedKVCache`
always gives everything and a mask, and counts its position in a tensor: every step has the same shapes, which is what a
compiled step on a GPU wants. Both say the same. Each layer has tensors of its own: a compiler that sees one tensor for all
layers copies the whole of it at every write."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from components.interfaces import Mask, Visible

Shape = tuple[int, int, int, int]  # B, kv_heads, length, d


class KVCache:
    """`keys` and `values`, [B, kv_heads, length, d] for each layer; the first `position` of `length` are filled."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], position: int = 0) -> None:
        self.keys, self.values, self.length = keys, values, keys[0].shape[2]
        self._position = position

    @classmethod
    def empty(cls, layers: int, shape: Shape, device: torch.device, dtype: torch.dtype) -> KVCache:
        keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(layers)]
        return cls(keys, [torch.empty_like(part) for part in keys])

    @property
    def position(self) -> int:
        return self._position

    def rewind(self, position: int) -> None:
        if not 0 <= position <= self.position:
            raise ValueError(f"the cache holds {self.position} positions, it cannot go back to {position}")
        self._position = position

    def repeat(self, times: int) -> KVCache:
        """Every row `times` times in a row: one prefix, many continuations."""
        keys, values = ([part.repeat_interleave(times, 0) for part in memory] for memory in (self.keys, self.values))
        return type(self)(keys, values, self.position)

    def positions(self, new: int) -> Tensor | slice:
        """Where the next `new` positions stand; raises ValueError when there is no room for them."""
        if self.position + new > self.length:
            raise ValueError(
                f"the backbone sees {self.length} positions at most, asked for {self.position + new}; a longer sequence "
                "needs a backbone built for it (the length comes from the tokenizer)"
            )
        return slice(self.position, self.position + new)

    def mask(self, new: int, mask: Mask) -> tuple[Tensor | BlockMask | None, bool]:
        """(bool mask of `new` queries on all keys or None where they see all, whether they are plainly causal)"""
        if not isinstance(mask, Visible):
            return mask, False
        if mask is Visible.ALL or new == 1:
            return None, False
        if not self.position:
            return None, True
        ones = torch.ones(new, self.position + new, dtype=torch.bool, device=self.keys[0].device)
        return ones.tril(self.position), False

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values [B, kv_heads, T, d] of a layer -> those of all positions it may look at."""
        end = self.position + k.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.position : end] = k
        values[:, :, self.position : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, new: int) -> None:
        self._position += new


class FixedKVCache(KVCache):
    """The same with shapes that never change; the position is the tensor `here` [1]. Whether there is room is not checked
    at each step, since that would wait for the GPU: who calls for a step knows how many there are."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], position: int = 0) -> None:
        super().__init__(keys, values)
        self.here = torch.full((1,), position, device=keys[0].device)

    @classmethod
    def empty(cls, layers: int, shape: Shape, device: torch.device, dtype: torch.dtype) -> FixedKVCache:
        # What is masked must be finite: zeros.
        keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        return cls(keys, [torch.zeros_like(part) for part in keys])

    @property
    def position(self) -> int:
        return int(self.here)

    def rewind(self, position: int) -> None:
        super().rewind(position)
        self.here.fill_(position)

    def positions(self, new: int) -> Tensor:
        return self.here + torch.arange(new, device=self.here.device)

    def mask(self, new: int, mask: Mask) -> tuple[Tensor | BlockMask | None, bool]:
        if isinstance(mask, BlockMask):
            raise ValueError("a cache of fixed shapes takes a mask as a tensor, not as blocks")
        if isinstance(mask, Tensor):
            return torch.nn.functional.pad(mask, (0, self.length - mask.shape[-1])), False
        last = self.here + new - 1 if mask is Visible.ALL else self.positions(new)[:, None]
        return (torch.arange(self.length, device=self.here.device) <= last).expand(new, -1), False

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        where = self.positions(k.shape[2])
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, where, k)
        values.index_copy_(2, where, v)
        return keys, values

    def advance(self, new: int) -> None:
        self.here += new
