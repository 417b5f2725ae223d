"""Samplers that fill in several positions a call: against enumeration, and call by call."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from test_generators import build

from components.interfaces import Generator, TokenSpec
from components.sampling.masked_schedule import MaskedSchedule
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
    from scipy.stats import chi2

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

    def test_one_position_a_call_in_a_random_order_is_exact(self, guidance: float) -> None:
        model, labels = build("masked", SPEC), torch.ones(DRAWS, dtype=torch.long)
        sampler = MaskedSchedule(steps=3, schedule="linear", randomness=1e9, guidance=guidance)
        assert sampler.counts(3) == [2, 1, 0]
        expected = torch.stack([filled_in(model, order, guidance) for order in ONE_BY_ONE]).mean(0)
        assert_follows(sampler.sample(model, labels, rng()), expected)

    def test_two_steps_of_unmasking(self, guidance: float) -> None:
        """In the first of two steps each position is settled with probability 1/2; all ways are enumerated."""
        model, labels = build("masked_diffusion", SPEC), torch.ones(DRAWS, dtype=torch.long)
        expected = torch.zeros(len(EVERY))
        for first in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in range(4)):
            rest = tuple(p for p in range(3) if p not in first)
            expected += filled_in(model, (first, rest), guidance) / 8
        assert_follows(Unmasking(steps=2, guidance=guidance).sample(model, labels, rng()), expected)


class TestMaskedSchedule:
    @pytest.mark.parametrize("steps", [1, 3, 8, 12, 40])
    @pytest.mark.parametrize("schedule", ["cosine", "linear", "square"])
    def test_a_call_a_step_and_settled_positions_stay(self, steps: int, schedule: str) -> None:
        model = build("masked", TokenSpec((7,), 12, "sequence"))
        sampler = MaskedSchedule(steps=steps, schedule=schedule)  # type: ignore[arg-type]
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        predict = model.predict

        def watched(codes: torch.Tensor, known: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            seen.append((codes.clone(), known.clone()))
            return predict(codes, known, condition)

        model.predict = watched  # type: ignore[method-assign]
        tokens = sampler.sample(model, torch.zeros(5, dtype=torch.long), rng())
        assert len(seen) == min(steps, 12)
        for (codes, known), hidden in zip(seen, [12, *sampler.counts(12)], strict=False):
            assert ((~known).sum(1) == hidden).all()
            assert torch.equal(codes[..., 0][known], tokens[known])

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


def test_a_step_that_settles_nothing_costs_no_call() -> None:
    model, calls = build("masked_diffusion", SPEC), []
    predict = model.predict
    model.predict = lambda *given: calls.append(1) or predict(*given)  # type: ignore[method-assign]
    Unmasking(steps=500).sample(model, torch.zeros(1, dtype=torch.long), rng())
    assert 1 <= len(calls) <= 3
