"""Group-relative policy gradients: the parts are exact, and a bandit learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from components import registry
from components.conditioners.class_label import ClassLabel
from components.interfaces import (
    Autoregressive,
    Draw,
    FeatureExtractor,
    Head,
    ImageFormat,
    PostTraining,
    Tokenizer,
    TokenSpec,
)
from components.posttraining.grpo import GRPO, variety
from components.posttraining.losses import ClippedPolicy, GroupAdvantages, k3

LENGTH, VOCABULARY, CLASSES = 2, 6, 3


class Logits(Head):
    """Hidden states are logits already."""

    def loss(self, hidden: Tensor, codes: Tensor) -> Tensor:
        return -hidden.log_softmax(-1).gather(-1, codes)

    def sample(self, hidden: Tensor, draw: Draw) -> Tensor:
        return draw(hidden)[:, None]


class Table(Autoregressive):
    """Independent tokens: one learned row of logits for each class and position."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = TokenSpec((VOCABULARY,), LENGTH, "sequence")
        self.classes = CLASSES
        self.conditioner, self.head = ClassLabel(CLASSES), Logits()
        self.table = nn.Parameter(torch.zeros(CLASSES + 1, LENGTH, VOCABULARY))

    def log_probs(self, tokens: Tensor, condition: Tensor) -> Tensor:
        return self.table[condition].log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)

    def begin(self, condition: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.table[condition, 0], {"labels": condition, "position": 1}

    def extend(self, codes: Tensor, state: Any) -> Tensor:
        logits = self.table[state["labels"], min(state["position"], LENGTH - 1)]
        state["position"] += 1
        return logits[:, None]


class Pixels(Tokenizer):
    """Each token is a pixel's brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = TokenSpec((VOCABULARY,), LENGTH, "sequence")
        self.image = ImageFormat(LENGTH, 1)

    def encode(self, images: Tensor) -> Tensor:
        return ((images[:, 0, 0] + 1) / 2 * (VOCABULARY - 1)).round().long()

    def decode(self, tokens: Tensor) -> Tensor:
        return (tokens / (VOCABULARY - 1) * 2 - 1)[:, None, None].expand(-1, 1, LENGTH, -1)


class Brightness(FeatureExtractor):
    """Class 0 is dark, class 2 is bright, class 1 between."""

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def logits(self, images: Tensor) -> Tensor:
        centers = torch.tensor([-0.8, 0.0, 0.8])
        return -8 * (images.mean((1, 2, 3))[:, None] - centers).square()


def method(**config: Any) -> GRPO:
    choice = {"type": "grpo", "reward": {"type": "class_probability"}, **config}
    return registry.build(PostTraining, choice, Table(), Pixels(), {"reward": Brightness()})


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_k3_is_never_negative_and_zero_at_equality(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, 50, generator=rng, dtype=torch.float64)
    assert (k3(p, q) >= 0).all()
    assert (k3(p, p) == 0).all()


def test_k3_is_unbiased() -> None:
    """Its exact expectation under p is KL(p | q)."""
    p, q = torch.randn(2, 12, dtype=torch.float64).log_softmax(-1)
    assert float((p.exp() * k3(p, q)).sum()) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-12)


def test_the_gradient_of_k3_vanishes_at_the_reference() -> None:
    p = torch.randn(7, requires_grad=True)
    k3(p, p.detach()).sum().backward()
    assert p.grad.abs().max() < 1e-6


def test_advantages_have_zero_mean_and_unit_spread_in_each_group() -> None:
    rewards = torch.rand(9, 16, dtype=torch.float64) * torch.logspace(-1, 2, 9, dtype=torch.float64)[:, None]
    advantages, std = GroupAdvantages(1e-12)(rewards)
    assert advantages.mean(1).abs().max() < 1e-12
    assert advantages.square().mean(1).sqrt().numpy() == pytest.approx(1.0, rel=1e-6)
    assert std[:, 0].numpy() == pytest.approx(rewards.std(1, correction=0).numpy())


def test_a_group_that_hardly_differs_is_left_alone() -> None:
    rewards = 0.9 + 1e-3 * torch.randn(4, 16)
    assert GroupAdvantages(0.1)(rewards)[0].abs().max() < 0.1
    assert (GroupAdvantages(0.1)(torch.ones(2, 8))[0] == 0).all()


def test_at_ratio_one_the_gradient_is_that_of_reinforce() -> None:
    log_probs = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(8, dtype=torch.float64)
    loss, clipped = ClippedPolicy(0.2)(log_probs, log_probs.detach(), advantages)
    (ours,) = torch.autograd.grad(loss, log_probs)
    (reinforce,) = torch.autograd.grad(-(advantages[:, None] * log_probs).mean(), log_probs)
    torch.testing.assert_close(ours, reinforce)
    assert float(clipped) == 0


def test_clipping_stops_a_token_that_has_moved_far_enough() -> None:
    old = torch.zeros(4, 1, dtype=torch.float64)
    log_probs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    ClippedPolicy(0.2)(log_probs, old, advantages)[0].backward()
    moved = log_probs.grad.squeeze().ne(0).tolist()
    assert moved == [False, True, True, False]  # good and already likelier, bad and already rarer: no more


def test_the_whole_step_is_reinforce_without_kl() -> None:
    grpo = method(kl=0.0, updates=1)
    grpo.generator.table.data.normal_(generator=torch.Generator().manual_seed(1))
    batch = grpo.batches([0, 1, 2], 48, seed=0).batch(0)
    grpo(batch)["loss"].backward()
    table = grpo.generator.table.detach().clone().requires_grad_()
    log_probs = table[batch["labels"]].log_softmax(-1).gather(-1, batch["tokens"][..., None]).squeeze(-1)
    (-(batch["advantages"][:, None] * log_probs).mean()).backward()
    torch.testing.assert_close(grpo.generator.table.grad, table.grad)


def test_rollouts_are_a_function_of_seed_step_and_state() -> None:
    first, second, other = method(), method(), method()
    a, b = first.batches([0, 1, 2], 24, seed=3), second.batches([0, 1, 2], 24, seed=3)
    c = other.batches([0, 1, 2], 24, seed=4)
    assert a.on_policy
    for name, value in a.batch(0).items():
        assert torch.equal(value, b.batch(0)[name]), name
    assert not torch.equal(a.batch(0)["tokens"], c.batch(0)["tokens"])
    assert not torch.equal(a.batch(0)["tokens"], a.batch(2)["tokens"])


def test_rollouts_in_use_survive_a_restart() -> None:
    """Stopped after the first of two updates, the second one sees the same rollouts, though the policy has moved."""
    first = method(updates=2)
    batches = first.batches([0, 1, 2], 24, seed=3)
    batches.batch(0)
    first.generator.table.data.normal_()
    state = first.state_dict()
    assert not any("reference" in name and "log_probs" not in name for name in state)
    resumed = method(updates=2)
    again = resumed.batches([0, 1, 2], 24, seed=3)
    resumed.load_state_dict(state)
    for name, value in batches.batch(1).items():
        assert torch.equal(value, again.batch(1)[name]), name


def test_a_batch_asks_for_every_class_equally_and_the_reference_stays() -> None:
    grpo = method(updates=1, group_size=8)
    batches = grpo.batches([0, 2], 32, seed=0)
    assert torch.bincount(batches.batch(0)["labels"], minlength=3).tolist() == [16, 0, 16]
    before = grpo.reference.table.clone()
    grpo.generator.table.data += 1
    assert torch.equal(grpo.reference.table, before)
    assert not any(p.requires_grad for p in grpo.reference.parameters())


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of group_size"):
        method(updates=1, group_size=16).batches([0], 24, seed=0)
    with pytest.raises(ValueError, match="no class to ask for"):
        method().batches([], 32, seed=0)


def test_variety_is_the_share_of_differing_pairs() -> None:
    tokens = torch.tensor([[[0, 1], [0, 1], [0, 2], [3, 4]]])
    assert variety(tokens)[0].tolist() == pytest.approx(
        [(0 + 0.5 + 1) / 3, (0 + 0.5 + 1) / 3, (0.5 + 0.5 + 1) / 3, 1.0]
    )


@pytest.mark.parametrize(("kl", "final"), [(0.0, 0.85), (0.05, 0.75)])
def test_a_bandit_learns(kl: float, final: float) -> None:
    grpo = method(kl=kl)
    batches = grpo.batches([0, 1, 2], 192, seed=0)
    optimizer = torch.optim.Adam(grpo.parameters(), lr=0.1)
    trace = []
    for step in range(60):
        losses = grpo(batches.batch(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        trace.append({name: float(value.detach()) for name, value in losses.items()})
    assert trace[0]["reward"] < 0.5
    assert trace[-1]["reward"] > final
    assert trace[1]["clipped"] >= 0
    assert trace[-1]["kl"] > 0


def test_the_kl_holds_the_policy() -> None:
    moved = []
    for kl in (0.0, 1.0):
        grpo = method(kl=kl)
        batches = grpo.batches([0, 1, 2], 192, seed=0)
        optimizer = torch.optim.Adam(grpo.parameters(), lr=0.1)
        for step in range(30):
            losses = grpo(batches.batch(step))
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
        moved.append(float(losses["kl"].detach()))
    assert moved[1] < 0.5 * moved[0]
