"""Next-X prediction with teacher forcing: clean entities as context in training; what xAR's noisy context is compared with.

1. As `next_x`, but one entity of each sample, drawn at random, gets noise; those before it enter clean, at t = 0.
2. The loss counts this entity only: the others have nothing to predict.
3. Training sees what sampling sees as long as sampling makes no mistakes; that it does make them is what `next_x` is for.

Deliberately absent: all entities in one pass next to a clean copy of the sequence (twice as long). Source: Ren et al. 2025,
xAR, https://arxiv.org/abs/2502.20388, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from components.generators.next_x import NextX


class NextXTeacherForced(NextX):
    """Settings, batches and sampling as of `next_x`.

    >>> from components import registry
    >>> from components.interfaces import Generator, LatentSpec
    >>> small = {"type": "modulated_transformer", "depth": 1, "width": 32, "heads": 2}
    >>> model = registry.build(Generator, {"type": "next_x_teacher_forced", "backbone": small}, LatentSpec(4, 16, (4, 4)), 10)
    >>> model.noise_levels(5, torch.device("cpu"))[1].sum(1).tolist()
    [1, 1, 1, 1, 1]
    """

    def noise_levels(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        times, _ = super().noise_levels(rows, device)
        chosen = torch.randint(self.entities, (rows, 1), device=device)
        counted = torch.arange(self.entities, device=device) == chosen
        return times * counted, counted
