"""A gradient for every code through the softmax of all of them (index backpropagation quantization, IBQ).

1. The code is the nearest one; forward takes its row of the table.
2. Backward goes through softmax(logits) @ table: the latents and all codes move, also those nobody chose.

It holds a number for each latent and each code. Deliberately absent: the temperature of the released code's variants.
Source: Shi et al. 2024, https://arxiv.org/abs/2412.02692, section 3.2.
"""

from __future__ import annotations

from torch import Tensor

from components.interfaces import Assignment, GradientEstimator
from components.quantizers._codebook import straight_through


class IndexBackpropagation(GradientEstimator):
    def __call__(self, latents: Tensor, table: Tensor, assignment: Assignment, training: bool) -> tuple[Tensor, Tensor]:
        codes = assignment.nearest(latents, table)
        soft = assignment.logits(latents, table).softmax(1) @ table
        return codes, straight_through(soft, table[codes])
