"""How often codes are used: moving counts over recent steps, the same on all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.quantizers._codebook import usage
from components.training import distributed

_RARE = 0.01  # of an even share of use; a code below it counts as dead


class CodeUse(nn.Module):
    """Of one codebook. `see` in forward, `take` in after_step; codes seen before `forget` do not count.

    >>> use = CodeUse(4, decay=0.5)
    >>> use.see(torch.tensor([0, 0, 1, 1]))
    >>> use.take(), use.counts
    (True, tensor([1.5000, 1.5000, 0.5000, 0.5000]))
    """

    counts: Tensor  # [K]

    def __init__(self, size: int, decay: float = 0.99) -> None:
        super().__init__()
        self.size, self.decay = size, decay
        self.register_buffer("counts", torch.ones(size))
        self.seen: list[Tensor] = []

    def see(self, codes: Tensor) -> None:
        self.seen.append(codes.detach().flatten())

    def forget(self) -> None:
        self.seen = []

    @torch.no_grad()
    def take(self) -> bool:
        """The moving counts follow what all processes have seen since the last time; False when that was nothing."""
        seen, self.seen = self.seen, []
        codes = torch.cat(seen) if seen else self.counts.new_zeros(0, dtype=torch.int64)
        counts = distributed.all_sum(torch.bincount(codes, minlength=self.size).float())
        if not len(codes) and not bool(counts.any()):
            return False
        self.counts.lerp_(counts, 1 - self.decay)
        return True

    def statistics(self) -> dict[str, float]:
        dead = int((self.counts < _RARE * self.counts.mean()).sum())
        return {"usage": 1 - dead / self.size, "perplexity": usage(self.counts)[1], "dead_codes": float(dead)}


def together(parts: list[dict[str, float]]) -> dict[str, float]:
    """Statistics of several codebooks as one: means, and the sum of dead codes."""
    found = {name: sum(part[name] for part in parts) for name in parts[0]}
    return {name: value if name == "dead_codes" else value / len(parts) for name, value in found.items()}
