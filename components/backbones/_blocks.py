"""What transformers are made of: attention with rotary positions and normalized queries and keys, and SwiGLU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from components.backbones import _rope
from components.backbones._cache import KVCache
from components.registry import ComponentError

EPSILON = 1e-6


def check_sizes(width: int, heads: int, kv_heads: int, axes: int) -> None:
    """Raises ComponentError naming the setting that does not fit."""
    if width % (2 * axes * heads):
        factor = "2 * heads" if axes == 1 else f"2 * {axes} axes * heads"
        raise ComponentError(f"must be a multiple of {factor} ({2 * axes * heads}), got {width}", ("width",))
    if heads % kv_heads:
        raise ComponentError(f"must divide heads ({heads}), got {kv_heads}", ("kv_heads",))


def initialize(module: nn.Module, depth: int) -> None:
    """Matrices from N(0, 0.02^2); those that write into the residual stream smaller by sqrt(2 * depth)."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if name.endswith("out.weight") else 0.02)


@cache
def flexible_attention(device: str) -> Callable[..., Any]:
    """FlexAttention; on a GPU compiled, as it is slow and large otherwise."""
    plain: Callable[..., Any] = flex_attention
    return torch.compile(plain, dynamic=False) if device == "cuda" else plain


class Attention(nn.Module):
    """`heads` queries share `kv_heads` keys and values; queries and keys are normalized per head before they turn."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        self.project = nn.Linear(width, (heads + 2 * kv_heads) * self.dim, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(self.dim, eps=EPSILON), nn.RMSNorm(self.dim, eps=EPSILON)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | BlockMask | None,
        causal: bool,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        """x [B, T, W], cos and sin [T, d], mask bool [T, keys] or [B, T, keys] -> [B, T, W]"""
        batch, new, width = x.shape
        count = self.heads + 2 * self.kv_heads
        heads = self.project(x).view(batch, new, count, self.dim).transpose(1, 2)  # [B, heads, T, d]
        turning, v = heads.split([self.heads + self.kv_heads, self.kv_heads], 1)
        # Queries and keys are normalized and turned together: half as many small operations.
        weight = torch.cat(
            [self.query_norm.weight.expand(self.heads, -1), self.key_norm.weight.expand(self.kv_heads, -1)]
        )
        turning = F.rms_norm(turning, (self.dim,), eps=EPSILON) * weight[:, None]
        q, k = _rope.rotate(turning, cos, sin).to(v.dtype).split([self.heads, self.kv_heads], 1)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        grouped = self.heads != self.kv_heads
        if isinstance(mask, BlockMask):
            mixed = flexible_attention(q.device.type)(q, k, v, block_mask=mask, enable_gqa=grouped)
        else:
            each = mask[:, None] if mask is not None and mask.ndim == 3 else mask
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=each, is_causal=causal, enable_gqa=grouped)
        return self.out(mixed.transpose(1, 2).reshape(batch, new, width))


class SwiGLU(nn.Module):
    """[..., W] -> [..., W] through 8/3 of the width, rounded up to a multiple of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 64 * math.ceil(width * 8 / 3 / 64)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)
