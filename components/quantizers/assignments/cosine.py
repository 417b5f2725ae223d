"""The code with the smallest angle: latents and codes lie on the unit sphere (ViT-VQGAN).

Both are normalized before they are compared, and the normalized code is what goes on. Source: Yu et al. 2021,
https://arxiv.org/abs/2110.04627, section 3.2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from components.interfaces import Assignment
from components.quantizers._codebook import nearest


class Cosine(Assignment):
    """
    >>> import torch
    >>> Cosine().prepare(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    def prepare(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)

    def nearest(self, latents: Tensor, table: Tensor) -> Tensor:
        return nearest(latents, table)

    def logits(self, latents: Tensor, table: Tensor) -> Tensor:
        """Cosines in [-1, 1]"""
        return latents @ table.T
