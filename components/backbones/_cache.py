"""Keys and values of positions already seen, in memory that is taken once.

`KVCache` gives attention a view of what is filled, so that a step costs what has been seen and no more. `FixedKVCache`
always gives everything and a mask, and counts its position in a tensor: every step has the same shapes, which is what a
compiled step on a GPU wants. Both say the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.interfaces import Mask, Visible


@dataclass
class KVCache:
    """`keys` and `values` [depth, B, kv_heads, length, d]; the first `position` of `length` are filled."""

    keys: Tensor
    values: Tensor
    position: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype) -> KVCache:
        return cls(torch.empty(shape, device=device, dtype=dtype), torch.empty(shape, device=device, dtype=dtype))

    def rewind(self, position: int) -> None:
        if not 0 <= position <= self.position:
            raise ValueError(f"the cache holds {self.position} positions, it cannot go back to {position}")
        self.position = position

    def repeat(self, times: int) -> KVCache:
        """Every row `times` times in a row: one prefix, many continuations."""
        keys, values = (part.repeat_interleave(times, 1) for part in (self.keys, self.values))
        return type(self)(keys, values, self.position)

    def positions(self, new: int) -> Tensor:
        """Where the next `new` positions stand, [new] int64"""
        return torch.arange(self.position, self.position + new, device=self.keys.device)

    def mask(self, new: int, mask: Mask) -> tuple[Tensor | None, bool]:
        """(bool mask of `new` queries on all keys or None where they see all, whether they are plainly causal)"""
        if isinstance(mask, Tensor):
            return mask, False
        if mask is Visible.ALL or new == 1:
            return None, False
        if not self.position:
            return None, True
        ones = torch.ones(new, self.position + new, dtype=torch.bool, device=self.keys.device)
        return ones.tril(self.position), False

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New keys and values [B, kv_heads, T, d] of a layer -> those of all positions it may look at."""
        end = self.position + k.shape[2]
        self.keys[layer, :, :, self.position : end] = k
        self.values[layer, :, :, self.position : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, new: int) -> None:
        self.position += new


class FixedKVCache(KVCache):
    """The same with shapes that never change; `here` [1] int64 is the position as a tensor."""

    def __init__(self, keys: Tensor, values: Tensor, position: int = 0) -> None:
        super().__init__(keys, values, position)
        self.here = torch.full((1,), position, device=keys.device)

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype) -> FixedKVCache:
        # What is masked must be finite: zeros.
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def rewind(self, position: int) -> None:
        super().rewind(position)
        self.here.fill_(position)

    def positions(self, new: int) -> Tensor:
        return self.here + torch.arange(new, device=self.here.device)

    def mask(self, new: int, mask: Mask) -> tuple[Tensor | None, bool]:
        keys = torch.arange(self.keys.shape[3], device=self.here.device)
        if isinstance(mask, Tensor):
            return torch.nn.functional.pad(mask, (0, len(keys) - mask.shape[-1])), False
        last = self.here + new - 1 if mask is Visible.ALL else self.positions(new)[:, None]
        return (keys <= last).expand(new, -1), False

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        where = self.positions(k.shape[2])
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, where, k)
        values.index_copy_(2, where, v)
        return keys, values

    def advance(self, new: int) -> None:
        self.position += new
        self.here += new
