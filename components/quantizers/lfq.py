"""Lookup-free quantization: the code of a latent is the signs of its channels (MAGVIT-v2).

One group of `grouped_lfq`, which has the mechanism: signs, implied codebook {-1, 1}^bits, entropy and commitment losses.
Deliberately absent: a factorized entropy for many bits (that is `grouped_lfq`). Source: Yu et al. 2023,
https://arxiv.org/abs/2310.05737, section 3.1.
"""

from __future__ import annotations

from typing import Annotated

import torch  # noqa: F401 - the docstring example uses it
from pydantic import Field

from components.quantizers.grouped_lfq import GroupedLFQ


class LFQ(GroupedLFQ):
    """One code of `bits` bits a latent.

    >>> LFQ(8, bits=10)(torch.randn(2, 9, 8)).codes.shape
    torch.Size([2, 9, 1])
    """

    def __init__(
        self,
        dim: int,
        *,
        bits: Annotated[int, Field(ge=1, le=18)] = 10,
        entropy_weight: Annotated[float, Field(ge=0)] = 0.1,
        commitment_weight: Annotated[float, Field(ge=0)] = 0.25,
        temperature: Annotated[float, Field(gt=0)] = 0.01,
    ) -> None:
        super().__init__(
            dim,
            groups=1,
            bits=bits,
            entropy_weight=entropy_weight,
            commitment_weight=commitment_weight,
            temperature=temperature,
        )
