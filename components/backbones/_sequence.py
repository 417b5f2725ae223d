"""What every transformer here does around its blocks: coordinates, masks, the cache."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from components.backbones import _rope
from components.backbones._cache import FixedKVCache, KVCache
from components.interfaces import Backbone, Mask, SequenceShape, Visible
from components.registry import ComponentError


def coordinates(shape: SequenceShape, axes: int) -> Tensor:
    """Where each position stands, [length, axes]: its number in the sequence; or row and column of the grid, counted from
    one, with conditions at the origin."""
    if axes == 1:
        return torch.arange(shape.length)[:, None]
    if shape.grid is None:
        raise ComponentError("two axes need tokens on a grid; these stand in a row", ("axes",))
    rows, columns = shape.grid
    on_grid = torch.cartesian_prod(torch.arange(1, rows + 1), torch.arange(1, columns + 1))
    return torch.cat([torch.zeros(shape.prefix, 2, dtype=torch.int64), on_grid])


class SequenceModel(Backbone):
    """A backbone of blocks with attention; a subclass says what its blocks do in `run`."""

    cos: Tensor  # [length, d]
    sin: Tensor

    def __init__(self, shape: SequenceShape, cache_shape: tuple[int, int, int], rope_base: float, axes: int) -> None:
        """`cache_shape`: depth, kv_heads, channels of a head."""
        super().__init__()
        self.shape, self.cache_shape, self.rope_base, self.axes = shape, cache_shape, rope_base, axes
        cos, sin = _rope.table(coordinates(shape, axes), cache_shape[-1], rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @abstractmethod
    def run(self, hidden: Tensor, condition: Tensor | None, *attention: Any) -> Tensor:
        """All blocks and the last norm; `attention` is (cos, sin, mask, causal, cache) of each attention."""

    def new_cache(self, batch: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        kind = FixedKVCache if device.type == "cuda" else KVCache  # the step there is compiled
        return self._cache(kind, batch, device, dtype)

    def fixed_cache(self, batch: int, device: torch.device, dtype: torch.dtype) -> FixedKVCache:
        """A cache whose steps all have the same shapes, for a compiled step."""
        return self._cache(FixedKVCache, batch, device, dtype)

    def forward(
        self,
        hidden: Tensor,
        cache: KVCache | None = None,
        *,
        mask: Mask = Visible.CAUSAL,
        positions: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        new = hidden.shape[1]
        if cache is None:
            if new > self.shape.length:
                raise ValueError(f"the backbone sees {self.shape.length} positions at most, asked for {new}")
            seen, causal = (None, mask is Visible.CAUSAL and new > 1) if isinstance(mask, Visible) else (mask, False)
            where: Tensor | slice = slice(0, new) if positions is None else positions
        else:
            seen, causal = cache.mask(new, mask)
            following = cache.positions(new)
            where = following if positions is None else positions
        cos, sin = self.cos[where], self.sin[where]
        hidden = self.run(hidden, condition, cos, sin, seen, causal, cache)
        if cache is not None:
            cache.advance(new)
        return hidden

    def _cache(self, kind: type[Any], batch: int, device: torch.device, dtype: torch.dtype) -> Any:
        depth, heads, dim = self.cache_shape
        return kind.empty(depth, (batch, heads, self.shape.length, dim), device, dtype)
