"""GRPO: a pretrained generator improved by reward, without a value network.

1. For a label, `group_size` samples are drawn from the policy (temperature 1, no guidance), decoded and scored.
2. A sample's advantage is its reward relative to its group (`losses.GroupAdvantages`), the same for all its tokens.
3. The loss is the clipped policy gradient plus `kl` times the k3 estimate of KL(policy | frozen pretrained generator).
4. `updates` optimizer steps are made on one set of rollouts; from the second on the policy has moved, and the ratio to
   the drawing policy and its clipping take effect.
5. Rollouts in use are buffers of the module, hence in every checkpoint: a batch is a function of seed, step and state.

Against reward hacking: the reward saturates, near-equal groups count little, the KL holds the policy near the
pretrained one; reward, group spread, KL, entropy and the variety of rollouts are logged at each step.
Deliberately absent: a value network, an entropy bonus, guidance during rollouts, a moving reference.
Source: Shao et al. 2024, DeepSeekMath, https://arxiv.org/abs/2402.03300.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from components.interfaces import Autoregressive, Batches, Networks, PostTraining, Reward, Tokenizer
from components.posttraining.losses import ClippedPolicy, GroupAdvantages, k3
from components.registry import Spec
from components.sampling.engine import generate


class GRPO(PostTraining):
    """`batch_size * updates` rollouts at a time; both together must be a multiple of `group_size`.

    `std_floor` is in the reward's unit, `kl` weighs nats per token."""

    def __init__(
        self,
        generator: Autoregressive,
        tokenizer: Tokenizer,
        networks: Networks,
        *,
        reward: Spec[Reward],
        group_size: Annotated[int, Field(ge=2)] = 16,
        updates: Annotated[int, Field(ge=1)] = 2,
        clip: Annotated[float, Field(gt=0)] = 0.2,
        kl: Annotated[float, Field(ge=0)] = 0.05,
        std_floor: Annotated[float, Field(gt=0)] = 0.1,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.group_size, self.updates, self.kl = group_size, updates, kl
        self.advantages, self.policy = GroupAdvantages(std_floor), ClippedPolicy(clip)
        self.reward = reward.build(networks)
        reference = deepcopy(generator)
        # Not submodules: they are never trained and have no place in a checkpoint.
        self._frozen = (reference, tokenizer, *networks.values())
        for module in self._frozen:
            module.eval().requires_grad_(False)

    @property
    def reference(self) -> Autoregressive:
        return self._frozen[0]  # type: ignore[return-value]

    @property
    def tokenizer(self) -> Tokenizer:
        return self._frozen[1]  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GRPO:
        """`.to(device)` moves the frozen modules along."""
        for module in self._frozen:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> GRPO:
        """The policy stays in eval mode: dropout would make its ratio to itself differ from 1."""
        super().train(mode)
        self.generator.eval()
        return self

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.generator.parameter_groups()

    def batches(self, labels: Sequence[int], batch_size: int, seed: int) -> Batches:
        return Rollouts(self, labels, batch_size, seed)

    @torch.no_grad()
    def rollout(self, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """labels [groups] -> everything that the loss needs, [groups * group_size, ...]; groups stay together."""
        labels = labels.repeat_interleave(self.group_size)
        tokens = generate(self.generator, labels, rng, ())
        rewards = self.reward.score(self.tokenizer.decode(tokens).clamp(-1, 1), labels).float()
        advantages, std = self.advantages(rewards.view(-1, self.group_size))
        return {
            "tokens": tokens,
            "labels": labels,
            "rewards": rewards,
            "advantages": advantages.flatten(),
            "group_std": std.flatten(),
            "variety": variety(tokens.view(-1, self.group_size, tokens.shape[1])).flatten(),
            "old_log_probs": self.generator.log_probs(tokens, labels).float(),
            "reference_log_probs": self.reference.log_probs(tokens, labels).float(),
        }

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        log_probs = self.generator.log_probs(batch["tokens"], batch["labels"])  # [B, L]
        policy, clipped = self.policy(log_probs, batch["old_log_probs"], batch["advantages"])
        kl = k3(log_probs, batch["reference_log_probs"]).mean()
        return {
            "loss": policy + self.kl * kl,
            "policy": policy,
            "kl": kl.detach(),
            "clipped": clipped,
            "entropy": -log_probs.detach().mean(),  # nats a token, an estimate from the rollouts
            "reward": batch["rewards"].mean(),
            "group_std": batch["group_std"].mean(),
            "variety": batch["variety"].mean(),
        }


class Rollouts:
    """Batches drawn from the policy as it is when a batch is asked for; never ask ahead."""

    on_policy = True

    def __init__(self, method: GRPO, labels: Sequence[int], batch_size: int, seed: int) -> None:
        rows = batch_size * method.updates
        if rows % method.group_size:
            raise ValueError(
                f"posttraining: batch_size ({batch_size}) x updates ({method.updates}) = {rows} rollouts must be a "
                f"multiple of group_size ({method.group_size})"
            )
        if not labels:
            raise ValueError("posttraining: there is no class to ask for; the data set has no labels")
        self.method, self.labels, self.batch_size, self.seed = method, list(labels), batch_size, seed
        self.groups = rows // method.group_size
        length, real = method.generator.spec.length, torch.float32
        for name, shape, dtype in (
            ("tokens", (rows, length), torch.int64), ("labels", (rows,), torch.int64), ("rewards", (rows,), real),
            ("advantages", (rows,), real), ("group_std", (rows,), real), ("variety", (rows,), real),
            ("old_log_probs", (rows, length), real), ("reference_log_probs", (rows, length), real),
        ):  # fmt: skip
            method.register_buffer(f"rollout_{name}", torch.zeros(shape, dtype=dtype))

    def batch(self, step: int) -> dict[str, Tensor]:
        part = step % self.method.updates
        if part == 0:
            self._draw(step)
        rows = slice(part * self.batch_size, (part + 1) * self.batch_size)
        return {
            name.removeprefix("rollout_"): buffer[rows].clone()
            for name, buffer in self.method.named_buffers(recurse=False)
            if name.startswith("rollout_")
        }

    def _draw(self, step: int) -> None:
        device = self.method.get_buffer("rollout_tokens").device
        rng = torch.Generator(device).manual_seed((self.seed * 1_000_003 + step) % 2**63)
        start = (step // self.method.updates) * self.groups  # labels take turns, so that none is left out for long
        turn = (start + torch.arange(self.groups, device=device)) % len(self.labels)
        labels = torch.tensor(self.labels, device=device)[turn]
        for name, value in self.method.rollout(labels, rng).items():
            self.method.get_buffer(f"rollout_{name}").copy_(value)


def variety(tokens: Tensor) -> Tensor:
    """[groups, size, L] -> [groups, size]: the share of positions where a sample differs from others of its group."""
    equal = (tokens[:, :, None] == tokens[:, None]).float().mean(-1)  # [groups, size, size], 1 on the diagonal
    size = tokens.shape[1]
    return (size - equal.sum(-1)) / (size - 1)
