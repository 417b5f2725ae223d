"""Codes [B, N, G] and tokens [B, L]: the same integers, position by position."""

from __future__ import annotations

import torch
from torch import Tensor

from components.interfaces import TokenSpec
from components.quantizers._codebook import usage


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


class Counts:
    """How often each code of each codebook occurs, streaming.

    >>> counts = Counts(TokenSpec((4, 2), 1, "sequence"))
    >>> counts.see(torch.tensor([[0, 1], [3, 1]]))
    >>> counts.usage(), counts.dead()
    ((0.5, 1.5), 3)
    """

    def __init__(self, spec: TokenSpec) -> None:
        self.spec = spec
        self.counts = [torch.zeros(size, dtype=torch.int64) for size in spec.codebook_sizes]

    def see(self, tokens: Tensor) -> None:
        """[B, L]; what is no code is not counted"""
        codes = tokens.cpu().reshape(-1, self.spec.codes)
        for counts, column in zip(self.counts, codes.unbind(1), strict=True):
            inside = column[(column >= 0) & (column < len(counts))]
            counts += torch.bincount(inside, minlength=len(counts))

    def merge(self, other: Counts) -> None:
        for mine, its in zip(self.counts, other.counts, strict=True):
            mine += its

    def usage(self) -> tuple[float, float]:
        """(share of codes that occur, perplexity), means over codebooks"""
        found = [usage(counts) for counts in self.counts]
        return sum(share for share, _ in found) / len(found), sum(p for _, p in found) / len(found)

    def dead(self) -> int:
        """Codes that do not occur, in all codebooks"""
        return sum(int((counts == 0).sum()) for counts in self.counts)

    def __bool__(self) -> bool:
        return bool(self.counts[0].any())
