"""Samplers that fill in several positions a call: against enumeration, and call by call."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import ClassVar

import pytest
import torch
from scipy.stats import chi2
from test_generators import CLASSES, build

from components.interfaces import Generator, TokenSpec
from components.sampling._parallel import hidden_after
from components.sampling.masked_schedule import MaskedSchedule
from components.sampling.random_schedule import RandomSchedule
from components.sampling.unmasking import Unmasking

SPEC = TokenSpec((3,), 3, "sequence")
DRAWS = 20_000
EVERY = torch.tensor(list(itertools.product(range(3), repeat=3)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def filled_in(model: Generator, order: tuple[tuple[int, ...], ...], guidance: float = 1.0) -> torch.Tensor:
    """Probability of each of the 27 sequences, [27], when these groups of positions are drawn one group after another."""
    labels, null = torch.ones(len(EVERY), dtype=torch.long), torch.full((len(EVERY),), model.classes)
    known, log_p = torch.zeros(len(EVERY), 3, dtype=torch.bool), torch.zeros(len(EVERY))
    for group in order:
        logits = [model.head(model.predict(EVERY[..., None], known, c)) for c in (labels, null)]
        policy = (logits[1] + guidance * (logits[0] - logits[1])).log_softmax(-1)
        for position in group:
            log_p += policy[:, position].gather(-1, EVERY[:, position, None])[:, 0]
        for position in group:
            known[:, position] = True
    return log_p.exp()


def assert_follows(tokens: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Chi-square over all sequences; the limit is the 99.9% point."""
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-4)
    counts = Counter(map(tuple, tokens.tolist()))
    found = torch.tensor([counts[tuple(row)] for row in EVERY.tolist()])
    expected = len(tokens) * probabilities
    assert float(((found - expected) ** 2 / expected).sum()) < chi2.ppf(0.999, len(EVERY) - 1)


ONE_BY_ONE = [tuple((p,) for p in order) for order in itertools.permutations(range(3))]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
class TestAgainstEnumeration:
    def test_one_call_draws_all_positions_apart(self, guidance: float) -> None:
        model, labels = build("masked", SPEC), torch.ones(DRAWS, dtype=torch.long)
        expected = filled_in(model, ((0, 1, 2),), guidance)
        assert_follows(MaskedSchedule(steps=1, guidance=guidance).sample(model, labels, rng()), expected)
        assert_follows(Unmasking(steps=1, guidance=guidance).sample(model, labels, rng()), expected)
        assert_follows(RandomSchedule(steps=1, guidance=guidance).sample(model, labels, rng()), expected)

    def test_one_position_a_call_in_a_random_order_is_exact(self, guidance: float) -> None:
        model, labels = build("masked", SPEC), torch.ones(DRAWS, dtype=torch.long)
        sampler = MaskedSchedule(steps=3, schedule="linear", randomness=1e9, guidance=guidance)
        assert hidden_after("linear", 3, 3) == [2, 1, 0]
        expected = torch.stack([filled_in(model, order, guidance) for order in ONE_BY_ONE]).mean(0)
        assert_follows(sampler.sample(model, labels, rng()), expected)
        in_order = RandomSchedule(steps=3, schedule="linear", guidance=guidance)
        assert_follows(in_order.sample(model, labels, rng()), expected)

    def test_two_calls_in_a_random_order(self, guidance: float) -> None:
        """Of three positions one, then the other two: the cosine of two steps."""
        model, labels = build("masked", SPEC), torch.ones(DRAWS, dtype=torch.long)
        assert hidden_after("cosine", 2, 3) == [2, 0]
        ways = [((first,), tuple(p for p in range(3) if p != first)) for first in range(3)]
        expected = torch.stack([filled_in(model, way, guidance) for way in ways]).mean(0)
        assert_follows(RandomSchedule(steps=2, guidance=guidance).sample(model, labels, rng()), expected)

    def test_two_steps_of_unmasking(self, guidance: float) -> None:
        """In the first of two steps each position is settled with probability 1/2; all ways are enumerated."""
        model, labels = build("masked_diffusion", SPEC), torch.ones(DRAWS, dtype=torch.long)
        expected = torch.zeros(len(EVERY))
        for first in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in range(4)):
            rest = tuple(p for p in range(3) if p not in first)
            expected += filled_in(model, (first, rest), guidance) / 8
        assert_follows(Unmasking(steps=2, guidance=guidance).sample(model, labels, rng()), expected)


class TestSchedules:
    @pytest.mark.parametrize("steps", [1, 3, 8, 12, 40])
    @pytest.mark.parametrize("schedule", ["cosine", "linear", "square"])
    @pytest.mark.parametrize("kind", [MaskedSchedule, RandomSchedule])
    def test_a_call_a_step_and_settled_positions_stay(self, kind: type, steps: int, schedule: str) -> None:
        model = build("masked", TokenSpec((7,), 12, "sequence"))
        sampler = kind(steps=steps, schedule=schedule)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        predict = model.predict

        def watched(codes: torch.Tensor, known: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            seen.append((codes.clone(), known.clone()))
            return predict(codes, known, condition)

        model.predict = watched  # type: ignore[method-assign]
        tokens = sampler.sample(model, torch.zeros(5, dtype=torch.long), rng())
        assert len(seen) == min(steps, 12)
        for (codes, known), hidden in zip(seen, [12, *hidden_after(sampler.schedule, steps, 12)], strict=False):
            assert ((~known).sum(1) == hidden).all()
            assert torch.equal(codes[..., 0][known], tokens[known])


class TestMaskedSchedule:
    def test_without_randomness_the_surest_is_settled_first(self) -> None:
        model, label = build("masked", SPEC), torch.tensor([1])
        with torch.no_grad():
            known = torch.zeros(1, 3, dtype=torch.bool)
            best = model.head(model.predict(EVERY[:1, :, None], known, label)).log_softmax(-1).amax(-1)[0]
        seen: list[torch.Tensor] = []
        predict = model.predict
        model.predict = lambda codes, known, condition: seen.append(known.clone()) or predict(codes, known, condition)  # type: ignore
        MaskedSchedule(steps=3, schedule="linear", randomness=0, temperature=0).sample(model, label, rng())
        assert seen[1][0].tolist() == [position == int(best.argmax()) for position in range(3)]

    def test_growing_guidance_begins_without(self) -> None:
        model, labels = build("masked", SPEC), torch.ones(DRAWS, dtype=torch.long)
        sampler = MaskedSchedule(steps=1, guidance=9.0, guidance_curve="linear")
        assert_follows(sampler.sample(model, labels, rng()), filled_in(model, ((0, 1, 2),)))


class TestGuidanceOnFeatures:
    """Of a head that draws code by code, against enumeration: one position of two codes, all in one call."""

    CODES = TokenSpec((3, 4), 1, "sequence")
    HEAD: ClassVar = {"type": "channel_autoregressive", "depth": 1, "inner_width": 16, "heads": 2}

    def test_the_head_draws_from_led_features(self) -> None:
        model, draws = build("masked", self.CODES, head=self.HEAD), 20_000
        every = torch.tensor(list(itertools.product(range(3), range(4))))
        with torch.no_grad():
            codes, known = torch.zeros(1, 1, 2, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)
            asked, null = (model.predict(codes, known, torch.tensor([label]))[0] for label in (1, CLASSES))
            led = (null + 3.0 * (asked - null)).expand(12, -1)
            expected = draws * (-model.head.loss(led, every).sum(1)).exp()
            plain = draws * (-model.head.loss(asked.expand(12, -1), every).sum(1)).exp()
        sampler = RandomSchedule(guidance=3.0, guidance_on="features")
        tokens = sampler.sample(model, torch.ones(draws, dtype=torch.long), rng())
        found = torch.bincount(tokens[:, 0] * 4 + tokens[:, 1], minlength=12)
        limit = chi2.ppf(0.999, 11)
        assert float(((found - expected) ** 2 / expected).sum()) < limit
        assert float(((found - plain) ** 2 / plain).sum()) > 10 * limit  # and guidance does something

    def test_of_a_linear_head_it_is_guidance_on_logits(self) -> None:
        model, labels = build("masked", SPEC), torch.arange(64) % CLASSES
        one, other = (
            RandomSchedule(steps=3, guidance=2.5, guidance_curve="linear", guidance_on=on).sample(model, labels, rng())
            for on in ("logits", "features")
        )
        assert torch.equal(one, other)


def test_a_step_that_settles_nothing_costs_no_call() -> None:
    model, calls = build("masked_diffusion", SPEC), []
    predict = model.predict
    model.predict = lambda *given: calls.append(1) or predict(*given)  # type: ignore[method-assign]
    Unmasking(steps=500).sample(model, torch.zeros(1, dtype=torch.long), rng())
    assert 1 <= len(calls) <= 3
