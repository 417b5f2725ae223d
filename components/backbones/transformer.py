"""A decoder as language models of the Llama family have it; with another mask, an encoder.

1. Pre-norm residual blocks: x + attention(norm(x)), then x + mlp(norm(x)); RMSNorm everywhere, a last one at the end.
2. Attention with rotary positions, queries and keys normalized per head, and optionally fewer key-value heads.
3. The MLP is SwiGLU with 8/3 of the width, rounded up to a multiple of 64. No linear layer has a bias.
4. Generation writes keys and values into a static cache; a forward of T positions follows those already in it.
5. Weights start as N(0, 0.02^2); those that write into the residual stream are smaller by sqrt(2 * depth).

Deliberately absent: adaptive norm (`modulated_transformer` has it), sliding windows, learned positions. Sources: Touvron
et al. 2023 (Llama), https://arxiv.org/abs/2302.13971; RMSNorm: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467;
SwiGLU: Shazeer 2020, https://arxiv.org/abs/2002.05202; grouped queries: Ainslie et al. 2023,
https://arxiv.org/abs/2305.13245; normalized queries and keys: Dehghani et al. 2023, https://arxiv.org/abs/2302.05442; for
image tokens: Sun et al. 2024 (LlamaGen), https://arxiv.org/abs/2406.06525.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch  # noqa: F401 - the docstring example uses it
from pydantic import Field
from torch import Tensor, nn

from components.backbones._blocks import EPSILON, Attention, SwiGLU, check_sizes, initialize
from components.backbones._decoding import FastBlock, Product
from components.backbones._sequence import SequenceModel
from components.interfaces import SequenceShape


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=EPSILON), Attention(width, heads, kv_heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=EPSILON), SwiGLU(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *attention: Any) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), *attention))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def for_decoding(self, packed: Callable[[nn.Linear], Product]) -> FastBlock:
        return FastBlock(self, packed)


class Transformer(SequenceModel):
    """`width` is divided evenly among `heads`, these among `kv_heads` (default: as many). `dropout` acts on what each
    block adds, against overfitting on small data. `axes`: rotary positions along the sequence, or rows and columns.

    >>> backbone = Transformer(SequenceShape(16), depth=2, width=32, heads=4, kv_heads=2)
    >>> backbone(torch.zeros(3, 16, 32)).shape
    torch.Size([3, 16, 32])
    """

    def __init__(
        self,
        shape: SequenceShape,
        *,
        depth: Annotated[int, Field(ge=1)] = 12,
        width: Annotated[int, Field(ge=8)] = 768,
        heads: Annotated[int, Field(ge=1)] = 12,
        kv_heads: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        rope_base: Annotated[float, Field(gt=1)] = 10_000.0,
        axes: Literal[1, 2] = 1,
    ) -> None:
        kv_heads = kv_heads or heads
        check_sizes(width, heads, kv_heads, axes)
        super().__init__(shape, (depth, kv_heads, width // heads), rope_base, axes)
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, kv_heads, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        initialize(self, depth)

    def run(self, hidden: Tensor, condition: Tensor | None, *attention: Any) -> Tensor:
        if condition is not None:
            raise ValueError("a transformer takes its conditions as positions; modulated_transformer takes a vector")
        hidden = self.dropout(hidden)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, *attention, layer)
        return self.norm(hidden)
