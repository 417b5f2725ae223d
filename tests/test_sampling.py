"""The engine against brute force, the rules against their definitions, every sampler against its contract."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from test_generators import CLASSES, SPEC, build

from components import registry
from components.interfaces import Sampler, TokenSpec
from components.sampling import engine
from components.sampling._packed import Packed
from components.sampling._policy import Guidance, invert
from components.sampling.ancestral import Ancestral
from components.sampling.rules import Greedy, MinP, Repetition, Temperature, TopK, TopP, Typical, apply

LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def generator():
    return build("next_token")


def full_logits(generator, prefix: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The next token's logits from one forward over everything so far, without cache; [B, V]"""
    tokens = torch.cat([prefix, torch.zeros(len(prefix), 1, dtype=torch.long)], 1)
    embedded = generator.token_embedding(tokens[:, :-1, None])
    sequence = torch.cat([generator.conditioner(labels), embedded], 1)
    return generator.head(generator.backbone(sequence)[:, -1])


def policy(generator, prefix: torch.Tensor, labels: torch.Tensor, guidance: float, rules=()) -> torch.Tensor:
    conditional = full_logits(generator, prefix, labels)
    null = full_logits(generator, prefix, torch.full_like(labels, CLASSES))
    return apply(null + guidance * (conditional - null), rules).softmax(-1)


class TestEngine:
    @pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
    @torch.no_grad()
    def test_greedy_is_the_argmax_of_a_recomputation_without_cache(self, generator, guidance: float) -> None:
        tokens = engine.generate(generator, LABELS, rng(), [Greedy()], guidance=guidance)
        prefix = torch.empty(len(LABELS), 0, dtype=torch.long)
        for _ in range(SPEC.length):
            prefix = torch.cat([prefix, policy(generator, prefix, LABELS, guidance).argmax(-1, keepdim=True)], 1)
        assert torch.equal(tokens, prefix)

    @pytest.mark.parametrize(
        ("guidance", "rules"), [(1.0, ()), (3.0, (Temperature(0.7), TopK(4))), (0.5, (TopP(0.8),))]
    )
    @torch.no_grad()
    def test_log_probs_are_those_of_the_sampled_policy(self, generator, guidance: float, rules) -> None:
        tokens, log_probs = engine.generate_with_log_probs(generator, LABELS, rng(), rules, guidance=guidance)
        for position in range(SPEC.length):
            expected = policy(generator, tokens[:, :position], LABELS, guidance, rules)
            found = log_probs[:, position].exp()
            torch.testing.assert_close(found, expected.gather(1, tokens[:, position, None])[:, 0], atol=1e-5, rtol=1e-4)
        assert torch.equal(tokens, engine.generate(generator, LABELS, rng(), rules, guidance=guidance))

    @torch.no_grad()
    def test_without_guidance_and_rules_the_policy_is_the_model(self, generator) -> None:
        tokens, log_probs = engine.generate_with_log_probs(generator, LABELS, rng())
        torch.testing.assert_close(log_probs, generator.log_probs(tokens, LABELS), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_samples_follow_the_enumerated_distribution(self, guidance: float) -> None:
        """Chi-square over all 27 sequences of a tiny model, 20,000 draws; the limit is the 99.9% point."""
        from scipy.stats import chi2

        tiny, draws, label = build("next_token", TokenSpec((3,), 3, "sequence")), 20_000, 1
        tokens = engine.generate(tiny, torch.full((draws,), label), rng(), guidance=guidance)
        counts = Counter(map(tuple, tokens.tolist()))
        statistic, total = 0.0, 0.0
        for sequence in itertools.product(range(3), repeat=3):
            probability = 1.0
            for position, token in enumerate(sequence):
                prefix = torch.tensor([sequence[:position]], dtype=torch.long).view(1, position)
                with torch.no_grad():
                    probability *= float(policy(tiny, prefix, torch.tensor([label]), guidance)[0, token])
            total += probability
            statistic += (counts[sequence] - draws * probability) ** 2 / (draws * probability)
        assert total == pytest.approx(1.0, abs=1e-5)
        assert statistic < chi2.ppf(0.999, df=26)

    def test_the_same_generator_state_gives_the_same_tokens(self, generator) -> None:
        first, second = (engine.generate(generator, LABELS, rng(5), guidance=2.0) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, engine.generate(generator, LABELS, rng(6), guidance=2.0))

    def test_guidance_1_is_no_guidance_and_skips_the_null_rows(self, generator, monkeypatch) -> None:
        rows = []
        begin = generator.begin
        monkeypatch.setattr(
            generator, "begin", lambda labels, prefix=None: rows.append(len(labels)) or begin(labels, prefix)
        )
        with_one = engine.generate(generator, LABELS, rng(), guidance=1.0)
        assert torch.equal(with_one, engine.generate(generator, LABELS, rng()))
        engine.generate(generator, LABELS, rng(), guidance=1.5)
        assert rows == [6, 6, 12]

    def test_guidance_0_does_not_know_the_label(self, generator) -> None:
        zeros, ones = (engine.generate(generator, torch.full((8,), label), rng(), guidance=0.0) for label in (0, 1))
        assert torch.equal(zeros, ones)

    def test_a_sample_does_not_depend_on_its_batch(self, generator) -> None:
        labels = torch.arange(64) % CLASSES
        together = engine.generate(generator, labels, rng(), guidance=2.0)
        one, state = rng(), []
        state = [engine.generate(generator, part, one, guidance=2.0) for part in labels.split([1, 1, 30, 32])]
        assert torch.equal(together, torch.cat(state))

    @torch.no_grad()
    def test_batched_logits_are_those_of_single_rows(self, generator) -> None:
        logits, cache = generator.begin(LABELS)
        single = [generator.begin(label[None]) for label in LABELS]
        torch.testing.assert_close(logits, torch.cat([s[0] for s in single]), atol=1e-5, rtol=1e-5)
        following = generator.extend(LABELS[:, None, None], cache)
        alone = torch.cat([generator.extend(t[None, None, None], s[1]) for t, s in zip(LABELS, single, strict=True)])
        torch.testing.assert_close(following, alone, atol=1e-5, rtol=1e-5)

    def test_steps_are_streamed_in_order(self, generator) -> None:
        seen: list[torch.Tensor] = []
        tokens = engine.generate(generator, LABELS, rng(), on_step=lambda step, drawn: seen.append(drawn.clone()))
        assert torch.equal(torch.cat(seen, 1), tokens)

    def test_dropout_is_off_while_drawing_and_back_on_after(self) -> None:
        backbone = {"type": "transformer", "depth": 1, "width": 16, "heads": 2, "dropout": 0.5}
        noisy = build("next_token", backbone=backbone).train()
        first, second = (engine.generate(noisy, LABELS, rng(), [Greedy()]) for _ in range(2))
        assert torch.equal(first, second)
        assert noisy.training

    def test_tokens_may_be_used_in_training(self, generator) -> None:
        tokens = engine.generate(generator, LABELS, rng())
        generator.log_probs(tokens, LABELS).sum().backward()
        generator.zero_grad()

    def test_labels_that_there_are_not(self, generator) -> None:
        assert engine.generate(generator, LABELS[:0], rng()).shape == (0, SPEC.length)
        with pytest.raises(ValueError, match=r"\[0, 3\]"):
            engine.generate(generator, torch.tensor([4]), rng())


class TestInvert:
    def test_every_quantile_has_its_token(self) -> None:
        logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log().expand(8, -1)
        uniform = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.999, 1 - 2**-53, 0.2], dtype=torch.float64)
        assert invert(logits, uniform).tolist() == [0, 0, 2, 2, 3, 3, 3, 0]

    def test_removed_tokens_are_never_drawn(self) -> None:
        logits = torch.full((2, 5), -math.inf)
        logits[:, 2] = 3.0
        assert invert(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [2, 2]


class TestRules:
    logits = torch.randn(200, 40, generator=rng(3)) * 3

    @pytest.mark.parametrize(
        "rule", [Greedy(), TopK(1), TopK(5), TopP(0.3), TopP(0.9), MinP(0.2), Typical(0.2), Typical(0.9)]
    )
    def test_cuts_keep_the_likeliest_and_all_ratios(self, rule) -> None:
        cut = rule(self.logits)
        kept = cut > -math.inf
        assert kept.gather(-1, self.logits.argmax(-1, keepdim=True)).all()
        renormalized = torch.where(kept, self.logits, -math.inf).softmax(-1)
        torch.testing.assert_close(cut.softmax(-1), renormalized)
        assert not kept.all()

    def test_temperature_divides(self) -> None:
        expected = (self.logits.softmax(-1) ** 2).double()
        torch.testing.assert_close(
            Temperature(0.5)(self.logits).softmax(-1).double(),
            expected / expected.sum(-1, keepdim=True),
            atol=1e-6,
            rtol=1e-4,
        )

    def test_top_k_keeps_k(self) -> None:
        assert ((TopK(5)(self.logits) > -math.inf).sum(-1) == 5).all()
        assert torch.equal(TopK(100)(self.logits), self.logits)

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
    def test_top_p_keeps_the_smallest_set_with_the_mass(self, p: float) -> None:
        probabilities = self.logits.softmax(-1)
        kept = TopP(p)(self.logits) > -math.inf
        for row, keep in zip(probabilities, kept, strict=True):
            mass, least = row[keep].sum(), row[keep].min()
            assert mass >= p - 1e-5
            assert mass - least < p  # without its last token it would be too little
            assert row[~keep].numel() == 0 or row[~keep].max() <= least

    def test_min_p_compares_with_the_largest(self) -> None:
        probabilities = self.logits.softmax(-1)
        expected = probabilities >= 0.1 * probabilities.amax(-1, keepdim=True)
        assert torch.equal(MinP(0.1)(self.logits) > -math.inf, expected)

    def test_typical_prefers_the_expected_surprise(self) -> None:
        probabilities = torch.tensor([[0.4, 0.15, 0.15, 0.15, 0.15]])
        entropy = -(probabilities * probabilities.log()).sum()  # 1.50 nats; a 0.15 has 1.90, the 0.4 has 0.92
        nearest = ((-probabilities.log()) - entropy).abs()[0]
        assert nearest[1] < nearest[0]
        kept = Typical(0.3)(probabilities.log())[0] > -math.inf
        assert kept.tolist() == [True, True, True, False, False]  # two of the typical ones, and the likeliest

    def test_typical_after_a_cut_has_no_nan(self) -> None:
        assert not Typical(0.5)(TopK(3)(self.logits)).isnan().any()


#: a generator each sampler draws from, and one it does not
SUITED = {
    "ancestral": ("next_token", "masked"),
    "masked_schedule": ("masked", "next_token"),
    "random_schedule": ("masked", "next_token"),
    "unmasking": ("masked_diffusion", "next_token"),
}


@pytest.mark.parametrize("name", SUITED)
class TestSamplerContract:
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_shape_range_and_reproducibility(self, name: str, guidance: float) -> None:
        model, sampler = build(SUITED[name][0]), registry.build(Sampler, {"type": name, "guidance": guidance})
        tokens = sampler.sample(model, LABELS, rng())
        assert (tokens.shape, tokens.dtype) == ((len(LABELS), SPEC.length), torch.int64)
        assert ((tokens >= 0) & (tokens < SPEC.vocabulary)).all()
        assert torch.equal(tokens, sampler.sample(model, LABELS, rng()))
        assert not torch.equal(tokens, sampler.sample(model, LABELS, rng(1)))
        assert not tokens.requires_grad and not tokens.is_inference()

    @pytest.mark.parametrize("head", ["factorised", "channel_autoregressive"])
    def test_positions_of_several_codes(self, name: str, head: str) -> None:
        spec = TokenSpec((3, 4), 5, "sequence")
        inner = {"depth": 1, "inner_width": 16, "heads": 2} if head == "channel_autoregressive" else {}
        model = build(SUITED[name][0], spec, head={"type": head, **inner})
        tokens = registry.build(Sampler, {"type": name, "guidance": 1.5}).sample(model, LABELS, rng())
        assert (tokens.view(6, 5, 2) < torch.tensor([3, 4])).all()

    def test_no_rows_are_no_samples(self, name: str) -> None:
        tokens = registry.build(Sampler, {"type": name}).sample(build(SUITED[name][0]), LABELS[:0], rng())
        assert tokens.shape == (0, SPEC.length)

    def test_guidance_0_does_not_know_the_label(self, name: str) -> None:
        model, sampler = build(SUITED[name][0]), registry.build(Sampler, {"type": name, "guidance": 0.0})
        zeros, ones = (sampler.sample(model, torch.full((8,), label), rng()) for label in (0, 1))
        assert torch.equal(zeros, ones)

    def test_another_kind_of_generator_is_refused_by_name(self, name: str) -> None:
        with pytest.raises(ValueError, match="choose another 'sampling.type'"):
            registry.build(Sampler, {"type": name}).sample(build(SUITED[name][1]), LABELS, rng())

    def test_dropout_is_off(self, name: str) -> None:
        backbone = {"type": "transformer", "depth": 1, "width": 16, "heads": 2, "dropout": 0.5}
        noisy, sampler = build(SUITED[name][0], backbone=backbone).train(), registry.build(Sampler, {"type": name})
        assert torch.equal(sampler.sample(noisy, LABELS, rng()), sampler.sample(noisy, LABELS, rng()))
        assert noisy.training


def test_every_sampler_has_a_generator_to_be_tested_with() -> None:
    assert set(registry.names(Sampler)) == {*SUITED, "entity_flow"}  # of latents: tests/test_next_x.py


class TestAncestral:
    def test_defaults_draw_from_the_model_itself(self, generator) -> None:
        assert torch.equal(Ancestral().sample(generator, LABELS, rng()), engine.generate(generator, LABELS, rng()))

    def test_temperature_0_and_top_k_1_are_greedy(self, generator) -> None:
        greedy = engine.generate(generator, LABELS, rng(), [Greedy()], guidance=2.0)
        for sampler in (Ancestral(temperature=0, guidance=2.0), Ancestral(top_k=1, guidance=2.0)):
            assert torch.equal(sampler.sample(generator, LABELS, rng(9)), greedy)

    @pytest.mark.parametrize(
        "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"guidance": -2}, {"topk": 3}]
    )
    def test_wrong_settings_are_refused(self, wrong: dict) -> None:
        with pytest.raises(registry.ComponentError):
            registry.build(Sampler, {"type": "ancestral", **wrong})


def test_two_thousand_samples_need_no_python_over_rows() -> None:
    """The engine calls the generator once a token, whatever the batch."""
    generator = build("next_token")
    calls = []
    extend = generator.extend
    generator.extend = lambda codes, state: calls.append(len(codes)) or extend(codes, state)  # type: ignore[method-assign]
    engine.generate(generator, torch.arange(2000) % CLASSES, rng(), guidance=2.0)
    assert calls == [4000] * (SPEC.length - 1)


class TestPackedLayers:
    @pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (4, 1), (7, 1), (3, 5), (0, 1)])
    def test_a_product_with_packed_weights_is_the_product(self, shape: tuple[int, int]) -> None:
        layers = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False), torch.nn.Linear(40, 17))
        x = torch.randn(*shape, 24)
        with torch.no_grad():
            expected = layers(x)
            with Packed.of(layers):
                torch.testing.assert_close(layers(x), expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(layers(x), expected)  # afterwards the plain layers are back

    def test_changed_weights_are_packed_anew(self) -> None:
        layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        x = torch.randn(2, 8)
        kept = Packed.of(layers)
        assert dict(kept.layers) == dict(Packed.of(layers).layers)  # nothing has changed
        with torch.no_grad():
            layers[0].weight.add_(1.0)
            with Packed.of(layers):
                found = layers(x)
            torch.testing.assert_close(found, layers(x), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
    @pytest.mark.parametrize("kv_heads", [4, 2])
    @torch.no_grad()
    def test_blocks_for_decoding_are_the_blocks(self, rows: int, kv_heads: int) -> None:
        """Prefix in one piece, then one position at a time: as without stand-ins, outputs and cache."""
        backbone = {"type": "transformer", "depth": 2, "width": 32, "heads": 4, "kv_heads": kv_heads}
        model = build("next_token", TokenSpec((7,), 12, "sequence"), backbone=backbone).backbone
        hidden, found = torch.randn(rows, 12, 32), {}
        for name, packed in (("plain", nullcontext()), ("packed", Packed.of(model))):
            cache = model.new_cache(rows, hidden.device, hidden.dtype)
            with packed:
                outputs = torch.cat([model(part, cache) for part in hidden.split([4, *[1] * 8], 1)], 1)
            found[name] = (outputs, torch.stack(cache.keys)[:, :, :, :12], torch.stack(cache.values)[:, :, :, :12])
        for one, other in zip(*found.values(), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)

    def test_another_s_wrapper_stays(self, generator) -> None:
        """Rollouts in a training that recomputes its blocks."""
        block, calls = generator.backbone.blocks[0], []
        plain = block.forward
        block.forward = lambda *args, **names: calls.append(1) or plain(*args, **names)
        try:
            wrapper = block.__dict__["forward"]
            engine.generate(generator, LABELS, rng(), [Greedy()])
            assert calls
            assert block.__dict__.get("forward") is wrapper
        finally:
            block.__dict__.pop("forward", None)

    def test_rollouts_follow_training(self) -> None:
        generator = build("next_token")
        engine.generate(generator, LABELS, rng(), [Greedy()])
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.mul_(-1.5)
        again = engine.generate(generator, LABELS, rng(), [Greedy()])
        fresh = build("next_token")
        fresh.load_state_dict(generator.state_dict())
        assert torch.equal(again, engine.generate(fresh, LABELS, rng(), [Greedy()]))


class TestPrefixAndEnd:
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    @pytest.mark.parametrize("size", [0, 1, 3, SPEC.positions])
    def test_a_prefix_is_continued_as_if_it_had_been_drawn(self, generator, size: int, guidance: float) -> None:
        whole = engine.generate(generator, LABELS, rng(), [Greedy()], guidance=guidance)
        prefix = whole[:, :size].unsqueeze(-1)
        again = engine.generate(generator, LABELS, rng(), [Greedy()], guidance=guidance, prefix=prefix)
        assert torch.equal(again, whole)

    @pytest.mark.parametrize("name", ["next_token", "random_order"])
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    @pytest.mark.parametrize("size", [0, 2])
    def test_a_prefix_read_once_is_continued_many_times(self, name: str, guidance: float, size: int) -> None:
        """As if every condition stood there so many times, down to the random numbers."""
        model, reads = build(name), []
        prefix = torch.randint(SPEC.vocabulary, (6, size, 1)) if size else None
        begin = model.begin
        model.begin = lambda condition, *rest: reads.append(len(condition)) or begin(condition, *rest)
        found = engine.generate(model, LABELS, rng(), guidance=guidance, prefix=prefix, samples=3)
        del model.begin
        many = None if prefix is None else prefix.repeat_interleave(3, 0)
        expected = engine.generate(model, LABELS.repeat_interleave(3), rng(), guidance=guidance, prefix=many)
        assert torch.equal(found, expected)
        assert reads == [6 if guidance == 1 else 12]
        with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
            engine.generate(model, LABELS, rng(), samples=0)

    @pytest.mark.parametrize(
        ("prefix", "message"),
        [
            (torch.zeros(6, 9, 1).long(), r"at most 5"),
            (torch.zeros(5, 1, 1).long(), "6"),
            (torch.full((6, 1, 1), 7), r"\[0, 7\)"),
        ],
    )
    def test_a_prefix_that_does_not_fit_is_refused(self, generator, prefix: torch.Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            engine.generate(generator, LABELS, rng(), prefix=prefix)

    def test_what_has_ended_stays_ended_and_costs_nothing(self) -> None:
        spec = TokenSpec((4,), 12, "sequence", end=2)
        ending, labels = build("next_token", spec), torch.arange(64) % CLASSES
        tokens, log_probs = engine.generate_with_log_probs(ending, labels, rng())
        after = (tokens == 2).cumsum(1) - (tokens == 2).long() > 0  # everything behind the first end
        assert after.any() and (~after).any()
        assert (tokens[after] == 2).all()
        assert (log_probs[after] == 0).all()
        with torch.no_grad():
            expected = ending.log_probs(tokens, labels)
        torch.testing.assert_close(log_probs[~after], expected[~after], atol=1e-5, rtol=1e-5)

    def test_it_stops_when_all_rows_have_ended(self) -> None:
        spec = TokenSpec((4,), 12, "sequence", end=2)
        ending = build("next_token", spec)
        with torch.no_grad():
            ending.head.project.weight.zero_()
            ending.head.project.weight[2] = 0
        always = lambda logits, drawn=None: torch.full_like(logits, -math.inf).index_fill(1, torch.tensor([2]), 0.0)  # noqa: E731
        seen: list[int] = []
        tokens = engine.generate(ending, LABELS, rng(), [always], on_step=lambda step, codes: seen.append(step))
        assert seen == [0]
        assert (tokens == 2).all()


class TestSeveralCodes:
    SPEC = TokenSpec((3, 4), 3, "sequence")

    @pytest.mark.parametrize("head", ["factorised", "channel_autoregressive"])
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_log_probs_of_what_was_drawn(self, head: str, guidance: float) -> None:
        inner = {"depth": 1, "inner_width": 16, "heads": 2} if head == "channel_autoregressive" else {}
        model = build("next_token", self.SPEC, head={"type": head, **inner})
        tokens, log_probs = engine.generate_with_log_probs(model, LABELS, rng(), guidance=guidance)
        assert tokens.shape == (6, 6)
        assert (tokens.view(6, 3, 2) < torch.tensor([3, 4])).all()
        if guidance == 1.0:
            with torch.no_grad():
                torch.testing.assert_close(log_probs, model.log_probs(tokens, LABELS), atol=1e-5, rtol=1e-5)


class TestGuidanceCurves:
    @pytest.mark.parametrize("curve", ["linear", "power_cosine"])
    def test_from_one_to_the_scale(self, curve) -> None:
        scales = [Guidance(3.0, curve).at(share) for share in (0, 0.25, 0.5, 0.75, 1)]
        assert (scales[0], scales[-1]) == (pytest.approx(1), pytest.approx(3))
        assert scales == sorted(scales)

    def test_linear_is_linear(self) -> None:
        assert Guidance(3.0, "linear").at(0.25) == pytest.approx(1.5)

    def test_the_first_position_is_then_not_guided(self, generator) -> None:
        linear = engine.generate(generator, LABELS, rng(), guidance=Guidance(9.0, "linear"))
        plain = engine.generate(generator, LABELS, rng())
        assert torch.equal(linear[:, 0], plain[:, 0])
        assert not torch.equal(linear, plain)


class TestRepetition:
    def test_only_what_was_drawn_lately_becomes_less_likely(self) -> None:
        logits, drawn = torch.tensor([[2.0, -1.0, 0.5, 3.0]]), torch.tensor([[3, 0, 1, 1]])
        assert Repetition(2.0)(logits, drawn).tolist() == [[1.0, -2.0, 0.5, 1.5]]
        assert Repetition(2.0, window=2)(logits, drawn).tolist() == [[2.0, -2.0, 0.5, 3.0]]
        assert torch.equal(Repetition(2.0)(logits, drawn[:, :0]), logits)

    def test_the_engine_hands_over_what_the_row_has_drawn(self, generator) -> None:
        seen: list[torch.Tensor] = []

        def look(logits: torch.Tensor, drawn: torch.Tensor | None = None) -> torch.Tensor:
            seen.append(drawn.clone())
            return logits

        tokens = engine.generate(generator, LABELS, rng(), [look], guidance=2.0)
        assert all(torch.equal(drawn, tokens[:, :position]) for position, drawn in enumerate(seen))


@pytest.mark.slow
def test_the_compiled_step_says_the_same(generator) -> None:
    """What a GPU runs, compiled for the CPU: fixed shapes, one graph, the same logits."""
    with torch.no_grad():
        tokens = engine.generate(generator, LABELS, rng(), [Greedy()])
        hidden = generator.conditioner(LABELS)
        cache = generator.backbone.fixed_cache(len(LABELS), hidden.device, hidden.dtype)
        found = [generator.backbone(hidden, cache)[:, -1]]
        step = engine.compiled(generator)
        found += [step(tokens[:, i, None, None], cache)[:, -1] for i in range(SPEC.length - 1)]
        again = torch.stack([generator.head(h).argmax(-1) for h in found], 1)
    assert torch.equal(again, tokens)
