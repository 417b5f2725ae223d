"""The nearest code by Euclidean distance (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, equation 1)."""

from __future__ import annotations

from torch import Tensor

from components.interfaces import Assignment
from components.quantizers._codebook import nearest


class Euclidean(Assignment):
    """
    >>> import torch
    >>> Euclidean().nearest(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]]))
    tensor([1])
    """

    def prepare(self, vectors: Tensor) -> Tensor:
        return vectors

    def nearest(self, latents: Tensor, table: Tensor) -> Tensor:
        return nearest(latents, table)

    def logits(self, latents: Tensor, table: Tensor) -> Tensor:
        """Minus the squared distances."""
        norms = latents.square().sum(1, keepdim=True) + table.square().sum(1)
        return 2 * latents @ table.T - norms
