"""Who sees whom: boolean masks [queries, keys] (True: sees), by the words of the field.

A backbone takes them as they are. Long sequences on a GPU take `flexible(mask)`, whose empty blocks cost nothing: Dong et
al. 2024, FlexAttention, https://arxiv.org/abs/2412.05496."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def causal(length: int) -> Tensor:
    """Each sees itself and what came before."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def prefix(length: int, visible: int) -> Tensor:
    """Causal, and the first `visible` positions are seen by all (Raffel et al. 2020, arXiv:1910.10683, figure 4)."""
    return causal(length) | (torch.arange(length) < visible)


def block(entities: Tensor) -> Tensor:
    """`entities` [T], not decreasing: each sees its own entity and earlier ones; every mask of blocks is this one."""
    return entities[:, None] >= entities[None, :]


def tree(parents: Sequence[int], past: int) -> Tensor:
    """[nodes, past + nodes]: node i sees the past, itself and its ancestors. `parents[i]` < i, -1 for a root.

    For verifying many drafts at once (Miao et al. 2023, SpecInfer, arXiv:2305.09781, section 4.2)."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"node {node} must come after its parent, got {parent}")
        if parent >= 0:
            seen[node] |= seen[parent]
    return torch.cat([torch.ones(len(parents), past, dtype=torch.bool), seen], 1)


def depths(parents: Sequence[int]) -> Tensor:
    """How many ancestors each node has, [nodes]: nodes of one depth stand at one position."""
    found: list[int] = []
    for parent in parents:
        found.append(0 if parent < 0 else found[parent] + 1)
    return torch.tensor(found)


def flexible(mask: Tensor) -> BlockMask:
    """[queries, keys] as FlexAttention has it: which blocks are empty, which are full, and who sees whom in the others.
    For training it needs a GPU."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask[query, key]

    queries, keys = mask.shape
    return create_block_mask(sees, None, None, queries, keys, device=mask.device)
