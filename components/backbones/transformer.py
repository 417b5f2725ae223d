"""A causal decoder, as language models of the Llama family have it.

1. Pre-norm residual blocks: x + attention(norm(x)), then x + mlp(norm(x)); RMSNorm everywhere, a last one at the end.
2. Attention with rotary positions, queries and keys normalized per head, and optionally fewer key-value heads.
3. The MLP is SwiGLU with 8/3 of the width, rounded up to a multiple of 64. No linear layer has a bias.
4. Generation writes keys and values into a static cache; a forward of T positions follows those already in it.
5. Weights start as N(0, 0.02^2); those that write into the residual stream are smaller by sqrt(2 * depth).

Deliberately absent: two-dimensional rotary positions (the order is a sequence), adaptive norm (conditions are tokens),
sliding windows, learned positions. Sources: Touvron et al. 2023 (Llama), https://arxiv.org/abs/2302.13971; RMSNorm:
Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467; SwiGLU: Shazeer 2020, https://arxiv.org/abs/2002.05202;
grouped queries: Ainslie et al. 2023, https://arxiv.org/abs/2305.13245; normalized queries and keys: Dehghani et al.
2023, https://arxiv.org/abs/2302.05442; for image tokens: Sun et al. 2024 (LlamaGen), https://arxiv.org/abs/2406.06525.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.backbones import _rope
from components.interfaces import Backbone
from components.registry import ComponentError


@dataclass
class KVCache:
    """Keys and values of all layers, [depth, B, kv_heads, length, d]; the first `position` of `length` are filled."""

    keys: Tensor
    values: Tensor
    position: int = 0


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, width // heads
        self.project = nn.Linear(width, (heads + 2 * kv_heads) * self.dim, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(self.dim, eps=1e-6), nn.RMSNorm(self.dim, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        batch, new, width = x.shape
        heads = self.project(x).view(batch, new, -1, self.dim).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)  # [B, heads, T, d]
        q = _rope.rotate(self.query_norm(q), cos, sin).to(v.dtype)
        k = _rope.rotate(self.key_norm(k), cos, sin).to(v.dtype)
        mask, past = None, 0
        if cache is not None:
            past, end = cache.position, cache.position + new
            cache.keys[layer, :, :, past:end] = k
            cache.values[layer, :, :, past:end] = v
            k, v = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
            if past and new > 1:
                mask = torch.ones(new, end, dtype=torch.bool, device=x.device).tril(past)
        causal = new > 1 and mask is None  # a single position may look at everything that is there
        grouped = self.heads != self.kv_heads
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.out(mixed.transpose(1, 2).reshape(batch, new, width))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 64 * math.ceil(width * 8 / 3 / 64)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=1e-6), _Attention(width, heads, kv_heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=1e-6), _MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, cache, layer))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Transformer(Backbone):
    """`width` is divided evenly among `heads`, these among `kv_heads` (default: as many). `dropout` acts on what each
    block adds, against overfitting on small data.

    >>> backbone = Transformer(16, depth=2, width=32, heads=4, kv_heads=2)
    >>> backbone(torch.zeros(3, 16, 32)).shape
    torch.Size([3, 16, 32])
    """

    cos: Tensor  # [length, width / heads]
    sin: Tensor

    def __init__(
        self,
        length: int,
        *,
        depth: Annotated[int, Field(ge=1)] = 12,
        width: Annotated[int, Field(ge=8)] = 768,
        heads: Annotated[int, Field(ge=1)] = 12,
        kv_heads: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        rope_base: Annotated[float, Field(gt=1)] = 10_000.0,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if width % (2 * heads):
            raise ComponentError(f"must be a multiple of 2 * heads ({2 * heads}), got {width}", ("width",))
        if heads % kv_heads:
            raise ComponentError(f"must divide heads ({heads}), got {kv_heads}", ("kv_heads",))
        self.length, self.depth, self.width = length, depth, width
        self.cache_shape = (kv_heads, length, width // heads)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, kv_heads, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        cos, sin = _rope.table(length, width // heads, rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if name.endswith("out.weight") else 0.02)

    def new_cache(self, batch: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        shape = (self.depth, batch, *self.cache_shape)
        return KVCache(torch.empty(shape, device=device, dtype=dtype), torch.empty(shape, device=device, dtype=dtype))

    def forward(self, hidden: Tensor, cache: KVCache | None = None) -> Tensor:
        past = cache.position if cache is not None else 0
        end = past + hidden.shape[1]
        if end > self.length:
            raise ValueError(f"the backbone sees {self.length} positions at most, asked for {end}")
        cos, sin = self.cos[past:end], self.sin[past:end]
        hidden = self.dropout(hidden)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, cos, sin, cache, layer)
        if cache is not None:
            cache.position = end
        return self.norm(hidden)
