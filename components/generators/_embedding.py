"""What a generator sees of the codes of a position: the sum of their embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.interfaces import TokenSpec


class CodeEmbedding(nn.Embedding):
    """Codes [..., G] -> [..., W]. All tables are one, so that a position of several codes costs one look-up."""

    offsets: Tensor  # [G], where the table of each code begins

    def __init__(self, spec: TokenSpec, width: int) -> None:
        super().__init__(sum(spec.codebook_sizes), width)
        sizes = torch.tensor(spec.codebook_sizes)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        if codes.shape[-1] == 1:
            return super().forward(codes[..., 0])
        return super().forward(codes + self.offsets).sum(-2)
