"""The parts of group-relative policy gradients, each a few lines: advantages, the clipped ratio, the KL estimate.

Tensors are per token, [B, L]; averages run over all tokens of the batch together (token-level normalization, Yu et al.
2025, https://arxiv.org/abs/2503.14476), so that a long sample is not worth less a token than a short one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupAdvantages:
    """A = (r - mean) / (std + floor) within each group of rollouts for one label.

    Source: Shao et al. 2024, section 4.1.1, https://arxiv.org/abs/2402.03300. `floor` is in the reward's unit. With the
    usual 1e-6, a group whose rewards hardly differ is blown up to unit advantages: noise of the reward is then learned
    as eagerly as a real mistake is unlearned. A floor near the reward's noise leaves such groups alone."""

    floor: float

    def __call__(self, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """rewards [groups, size] -> advantages and standard deviation of the group, both [groups, size]"""
        centred = rewards - rewards.mean(1, keepdim=True)
        std = centred.square().mean(1, keepdim=True).sqrt()
        return centred / (std + self.floor), std.expand_as(rewards)


@dataclass(frozen=True)
class ClippedPolicy:
    """-E[min(rho A, clip(rho, 1 - c, 1 + c) A)] with rho = p / p_old per token.

    Source: Schulman et al. 2017, equation 7, https://arxiv.org/abs/1707.06347."""

    clip: float

    def __call__(self, log_probs: Tensor, old: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """log_probs, old [B, L], advantages [B] -> (loss, share of tokens that the clipping holds), both scalars"""
        ratio = (log_probs - old).exp()
        free = ratio * advantages[:, None]
        bound = ratio.clamp(1 - self.clip, 1 + self.clip) * advantages[:, None]
        return -torch.minimum(free, bound).mean(), (bound < free).float().mean().detach()


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL(p | reference) per token, [B, L] each: q/p - 1 - log(q/p) for tokens drawn from p.

    Never negative, zero where both agree, and unbiased, since E_p[q/p] = 1. Source: Schulman,
    http://joschu.net/blog/kl-approx.html."""
    log_ratio = reference - log_probs
    return log_ratio.exp() - 1 - log_ratio
