"""Heads: a loss is the likelihood of what sampling draws, to the last bit of the definition and by counting."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from components import registry
from components.interfaces import Head, LatentSpec, TokenSpec
from components.sampling._policy import Guidance, Policy

WIDTH = 24
SMALL = {"channel_autoregressive": {"depth": 1, "inner_width": 16, "heads": 2}}
DISCRETE = [
    (name, sizes)
    for name in registry.names(Head)
    if not registry.lookup(Head, name).continuous
    for sizes in ([(7,)] if name == "categorical" else [(3, 4), (2, 3, 2)])
]


def build(name: str, sizes: tuple[int, ...]) -> Head:
    torch.manual_seed(0)
    head = registry.build(Head, {"type": name, **SMALL.get(name, {})}, WIDTH, TokenSpec(sizes, 6, "sequence"))
    for parameter in head.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return head.eval()


def draw(seed: int = 0, scale: float = 1.0) -> Policy:
    return Policy(torch.Generator().manual_seed(seed), (), Guidance(scale))


def every(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor(list(itertools.product(*map(range, sizes))))


@pytest.mark.parametrize(("name", "sizes"), DISCRETE)
class TestDiscreteHeads:
    def test_shapes_and_gradients(self, name: str, sizes: tuple[int, ...]) -> None:
        head = build(name, sizes)
        for lead in ((2, 6), (5,), (0,), (1, 2, 3)):
            hidden = torch.randn(*lead, WIDTH, requires_grad=True)
            codes = torch.stack([torch.randint(size, lead) for size in sizes], -1)
            loss = head.loss(hidden, codes)
            assert loss.shape == codes.shape
            head.zero_grad()
            loss.sum().backward()
            assert hidden.grad is not None and hidden.grad.isfinite().all()
            if codes.numel():
                assert hidden.grad.abs().flatten(0, -2).sum(-1).min() > 0
                assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())

    @torch.no_grad()
    def test_all_codes_of_a_position_together_have_probability_one(self, name: str, sizes: tuple[int, ...]) -> None:
        head, codes = build(name, sizes), every(sizes)
        for hidden in torch.randn(3, WIDTH):
            loss = head.loss(hidden.expand(len(codes), -1), codes)
            assert float((-loss.sum(-1)).double().exp().sum()) == pytest.approx(1, abs=1e-5)

    @torch.no_grad()
    def test_samples_come_as_often_as_the_loss_says(self, name: str, sizes: tuple[int, ...]) -> None:
        """Chi-square over all combinations of codes, 20,000 draws; the limit is the 99.9% point."""
        from scipy.stats import chi2

        head, codes, draws = build(name, sizes), every(sizes), 20_000
        hidden = torch.randn(WIDTH)
        expected = draws * (-head.loss(hidden.expand(len(codes), -1), codes).sum(-1)).double().exp()
        counts = Counter(map(tuple, head.sample(hidden.expand(draws, -1), draw()).tolist()))
        found = torch.tensor([counts[tuple(row)] for row in codes.tolist()])
        assert float(((found - expected) ** 2 / expected).sum()) < chi2.ppf(0.999, len(codes) - 1)

    @torch.no_grad()
    def test_the_policy_knows_what_it_drew(self, name: str, sizes: tuple[int, ...]) -> None:
        head, hidden, policy = build(name, sizes), torch.randn(9, WIDTH), draw()
        policy.keep_log_probs()
        codes = head.sample(hidden, policy)
        kept = policy.log_probs()
        if name == "channel_autoregressive":
            kept = kept[:, head.order.argsort()]  # drawn in the head's own order
        torch.testing.assert_close(kept, -head.loss(hidden, codes), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_with_guidance_both_twins_get_the_same_codes(self, name: str, sizes: tuple[int, ...]) -> None:
        head, hidden = build(name, sizes), torch.randn(8, WIDTH)
        codes = head.sample(torch.cat([hidden, torch.randn(8, WIDTH)]), draw(scale=2.0))
        assert torch.equal(codes[:8], codes[8:])
        same = head.sample(torch.cat([hidden, hidden]), draw(scale=2.0))[:8]
        assert torch.equal(same, head.sample(hidden, draw()))  # led away from itself is where it was

    def test_saved_and_loaded_it_says_the_same(self, name: str, sizes: tuple[int, ...]) -> None:
        head, other = build(name, sizes), build(name, sizes)
        for parameter in other.parameters():
            parameter.data.zero_()
        other.load_state_dict(head.state_dict())
        hidden, codes = torch.randn(4, WIDTH), every(sizes)[:4]
        assert torch.equal(other.loss(hidden, codes), head.loss(hidden, codes))


def test_positions_of_one_code_have_no_order_of_codes() -> None:
    with pytest.raises(registry.ComponentError, match="categorical"):
        registry.build(Head, {"type": "channel_autoregressive"}, WIDTH, TokenSpec((3,), 4, "sequence"))


def test_one_softmax_is_not_for_several_codes() -> None:
    with pytest.raises(registry.ComponentError, match="factorised"):
        registry.build(Head, {"type": "categorical"}, WIDTH, TokenSpec((3, 3), 4, "sequence"))


class TestOrderOfChannels:
    @torch.no_grad()
    def test_another_order_is_another_factorisation_of_a_distribution(self) -> None:
        head = build("channel_autoregressive", (2, 3, 2))
        codes, hidden = every((2, 3, 2)), torch.randn(WIDTH).expand(12, -1)
        before = head.loss(hidden, codes)
        head.set_order(torch.tensor([2, 0, 1]))
        after = head.loss(hidden, codes)
        assert float((-after.sum(-1)).double().exp().sum()) == pytest.approx(1, abs=1e-5)
        assert (before - after).abs().max() > 1e-3
        first = after[:, 2]  # the first to be predicted depends on its own value only
        assert torch.equal(first[codes[:, 2] == 0].unique(), first[codes[:, 2] == 0][:1])

    def test_what_is_no_permutation_is_refused(self) -> None:
        with pytest.raises(ValueError, match="permutation of 2"):
            build("channel_autoregressive", (2, 2)).set_order(torch.tensor([0, 0]))


class TestFlowMatching:
    def build(self) -> Head:
        torch.manual_seed(0)
        config = {"type": "flow_matching", "depth": 1, "inner_width": 32, "steps": 8}
        return registry.build(Head, config, WIDTH, LatentSpec(3, 6))

    def test_the_loss_is_the_error_of_the_velocity(self) -> None:
        head = self.build()
        hidden, latents = torch.randn(5, WIDTH), torch.randn(5, 3)
        torch.manual_seed(7)
        found = head.loss(hidden, latents)
        torch.manual_seed(7)
        times, noise = torch.rand(5), torch.randn(5, 3)
        x = (1 - times)[:, None] * latents + times[:, None] * noise
        expected = (head.velocity(x, times, hidden) - (noise - latents)).square().mean(-1, keepdim=True)
        torch.testing.assert_close(found, expected)

    def test_it_learns_where_the_hidden_state_points(self) -> None:
        head = self.build().train()
        hidden, targets = torch.eye(2, WIDTH), torch.tensor([[2.0, -1.0, 0.0], [-2.0, 0.0, 1.0]])
        optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
        for _ in range(400):
            rows = torch.randint(2, (64,))
            optimizer.zero_grad()
            head.loss(hidden[rows], targets[rows]).mean().backward()
            optimizer.step()
        with torch.no_grad():
            drawn = head.eval().sample(hidden.repeat_interleave(100, 0), draw())
        means = drawn.view(2, 100, 3).mean(1)
        assert (means - targets).abs().max() < 0.2

    @torch.no_grad()
    def test_guidance_moves_the_velocity(self) -> None:
        head = self.build()
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        hidden = torch.randn(4, WIDTH)
        both = torch.cat([hidden, torch.randn(4, WIDTH)])
        guided = head.sample(both, draw(scale=3.0))
        assert torch.equal(guided[:4], guided[4:])
        assert not torch.allclose(guided[:4], head.sample(hidden, draw()))
        plain = head.sample(torch.cat([hidden, hidden]), draw(scale=3.0))[:4]
        torch.testing.assert_close(plain, head.sample(hidden, draw()), atol=1e-5, rtol=1e-5)
