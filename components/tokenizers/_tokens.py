"""Codes [B, N, G] and tokens [B, L]: the same integers, position by position."""

from __future__ import annotations

import torch
from torch import Tensor

from components.interfaces import TokenSpec


def to_tokens(codes: Tensor) -> Tensor:
    """[B, N, G] -> [B, L]"""
    return codes.flatten(1)


def to_codes(tokens: Tensor, spec: TokenSpec) -> Tensor:
    """[B, L] -> [B, N, G]; ValueError when these are no tokens of `spec`."""
    check(tokens, spec)
    return tokens.view(len(tokens), spec.positions, spec.codes)


def check(tokens: Tensor, spec: TokenSpec) -> None:
    """Raises ValueError with expected and actual shape, type or range."""
    if tokens.ndim != 2 or tokens.shape[1] != spec.length:
        raise ValueError(f"expected tokens [B, {spec.length}], got {list(tokens.shape)}")
    if tokens.dtype != torch.int64:
        raise ValueError(f"expected tokens of type int64, got {tokens.dtype}")
    check_codes(tokens.view(len(tokens), spec.positions, spec.codes), spec.codebook_sizes)


def check_codes(codes: Tensor, sizes: tuple[int, ...]) -> None:
    """codes [..., G]: raises ValueError when one is outside its codebook."""
    for group, size in enumerate(sizes):
        found = codes[..., group]
        if found.numel() and not (int(found.min()) >= 0 and int(found.max()) < size):
            which = "" if len(sizes) == 1 else f" as code {group} of a position"
            raise ValueError(f"tokens must be in [0, {size}){which}, got {int(found.min())}..{int(found.max())}")
