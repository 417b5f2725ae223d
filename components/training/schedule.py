"""The learning rate as a pure function of the step, so that resuming needs nothing but the step."""

from __future__ import annotations

import math

from components.training.config import Train

#: the share of the steps in which wsd decays; Hägele et al. 2024, https://arxiv.org/abs/2405.18392, section 3
COOLDOWN = 0.2


def learning_rate(config: Train, step: int) -> float:
    """The rate of the optimizer step with number `step`, from 0.

    Linear warm-up (the first step already moves), then: cosine to `final_lr * lr`; constant; or wsd, constant with a
    final cool-down of the form 1 - sqrt (Hägele et al. 2024, equation 1)."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    last = max(config.steps - 1, 1)
    if config.schedule == "constant":
        share = 1.0
    elif config.schedule == "cosine":
        progress = min((step - config.warmup) / max(last - config.warmup, 1), 1.0)
        share = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        start = max(config.warmup, last - round(COOLDOWN * config.steps))
        progress = min(max(step - start, 0) / max(last - start, 1), 1.0)
        share = config.final_lr + (1 - config.final_lr) * (1 - math.sqrt(progress))
    return config.lr * share
