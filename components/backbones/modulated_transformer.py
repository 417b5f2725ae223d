"""A transformer whose every layer listens to a condition through its norms (adaLN-Zero, DiT).

1. Blocks as in `transformer`, but each norm's output is scaled and shifted, and what a sublayer adds is gated.
2. These six vectors of a block come from the condition by SiLU and a linear layer that starts at zero: at first every
   block is the identity.
3. The condition is a vector a sample or a vector a position; in the latter each position has, say, its own noise level.
4. The last norm is modulated too (scale and shift).

Deliberately absent: cross-attention, a condition as positions of the sequence (any caller can prepend some). Source:
Peebles and Xie 2022, DiT, https://arxiv.org/abs/2212.09748, section 3.2.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from components.backbones._blocks import EPSILON, Attention, SwiGLU, check_sizes, initialize
from components.backbones._sequence import SequenceModel
from components.interfaces import SequenceShape


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(width, eps=EPSILON), Attention(width, heads, kv_heads)
        self.mlp_norm, self.mlp = nn.RMSNorm(width, eps=EPSILON), SwiGLU(width)
        self.modulation = nn.Linear(width, 6 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor, *attention: Any) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, -1)
        mixed = self.attention(modulate(self.attention_norm(x), shift, scale), *attention)
        x = x + gate * self.dropout(mixed)
        return x + mlp_gate * self.dropout(self.mlp(modulate(self.mlp_norm(x), mlp_shift, mlp_scale)))


class ModulatedTransformer(SequenceModel):
    """Takes `condition` [B, W] or [B, T, W], as wide as itself; settings as of `transformer`.

    >>> backbone = ModulatedTransformer(SequenceShape(16), depth=1, width=32, heads=4)
    >>> backbone(torch.zeros(3, 16, 32), condition=torch.zeros(3, 32)).shape
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
        self.width = self.condition_width = width
        self.dropout = nn.Dropout(dropout)
        blocks = [_Block(width, heads, kv_heads, dropout) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.modulation = nn.Linear(width, 2 * width)
        initialize(self, depth)
        for block in blocks:
            nn.init.zeros_(block.modulation.weight)
            nn.init.zeros_(block.modulation.bias)

    def run(self, hidden: Tensor, condition: Tensor | None, *attention: Any) -> Tensor:
        condition = torch.zeros_like(hidden[:, 0]) if condition is None else condition
        condition = F.silu(condition if condition.ndim == 3 else condition[:, None])  # [B, 1 or T, W]
        hidden = self.dropout(hidden)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, condition, *attention, layer)
        shift, scale = self.modulation(condition).chunk(2, -1)
        return modulate(self.norm(hidden), shift, scale)
