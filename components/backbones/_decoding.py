"""A transformer block for one new position at a time on a CPU: the same arithmetic in half as many operations.

A step of decoding is a few hundred operations on a few kilobytes each, so what counts is their number. Here residuals are
added by the matrix products, queries and keys are turned by one `roll`, and norms take four operations instead of nine.
Used in the place of the block while the sampling engine decodes (`components/sampling/_packed.py`); whatever is not one
position after those in a plain cache goes through the block itself. Equal to it up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.backbones._blocks import EPSILON, Attention, SwiGLU
from components.backbones._cache import KVCache


class Product(Protocol):
    """A linear layer with weights laid out for few rows."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def added(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + layer(x)"""
        ...


class _Norm:
    """RMSNorm over the last dimension, [..., d]; weights [d] or [heads, d]."""

    def __init__(self, weight: Tensor) -> None:
        width = weight.shape[-1]
        self.scale = weight.detach() * width**0.5
        self.floor = torch.tensor((width * EPSILON) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return (x / torch.linalg.vector_norm(x, 2, -1, True).hypot_(self.floor)).mul_(self.scale)


class FastBlock:
    """Stands in for a block with `attention_norm`, `attention`, `mlp_norm` and `mlp`."""

    def __init__(self, block: Any, packed: Callable[[nn.Linear], Product]) -> None:
        attention: Attention = block.attention
        mlp: SwiGLU = block.mlp
        self.whole = type(block).forward.__get__(block)
        self.heads, self.kv_heads, self.dim = attention.heads, attention.kv_heads, attention.dim
        self.hidden = mlp.out.in_features
        self.project, self.out = packed(attention.project), packed(attention.out)
        self.gate_up, self.down = packed(mlp.gate_up), packed(mlp.out)
        self.norm, self.mlp_norm = _Norm(block.attention_norm.weight), _Norm(block.mlp_norm.weight)
        weights = [(attention.query_norm.weight, self.heads), (attention.key_norm.weight, self.kv_heads)]
        self.turning = _Norm(torch.cat([weight.expand(count, -1) for weight, count in weights]))

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Any, causal: bool, cache: KVCache | None, layer: int
    ) -> Tensor:
        if x.shape[1] != 1 or mask is not None or type(cache) is not KVCache or not len(x):
            return self.whole(x, cos, sin, mask, causal, cache, layer)
        rows, turning, position = x[:, 0], self.heads + self.kv_heads, cache.position  # [B, W]
        heads = self.project(self.norm(rows)).view(len(rows), turning + self.kv_heads, self.dim)
        qk = self.turning(heads[:, :turning])
        qk = torch.addcmul(qk * cos, qk.roll(self.dim // 2, -1), sin)
        keys, values = cache.keys[layer], cache.values[layer]
        keys[:, :, position] = qk[:, self.heads :]
        values[:, :, position] = heads[:, turning:]
        seen = position + 1
        mixed = F.scaled_dot_product_attention(
            qk[:, : self.heads, None], keys[:, :, :seen], values[:, :, :seen], enable_gqa=self.heads != self.kv_heads
        )
        rows = self.out.added(mixed.reshape(len(rows), -1), rows)
        gate_up = self.gate_up(self.mlp_norm(rows))
        gated = F.silu(gate_up[:, : self.hidden]).mul_(gate_up[:, self.hidden :])
        return self.down.added(gated, rows)[:, None]
