"""Generators: what begin and extend say is what training learns; labels are dropped as often as asked, reproducibly."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from components import artifact, registry
from components.data.batches import TokenBatches
from components.generators._schedules import SHARES
from components.generators.next_x import NextX
from components.interfaces import Autoregressive, Batches, Generator, LatentSpec, Parallel, Silent, TokenSpec
from components.registry import ComponentError
from components.training.config import Train
from components.training.trainer import train

SPEC, CLASSES = TokenSpec((7,), 5, "sequence"), 3
LATENTS = LatentSpec(3, 16, (4, 4))
BACKBONE = {"type": "transformer", "depth": 2, "width": 32, "heads": 4}
OF_LATENTS = {name for name in registry.names(Generator) if issubclass(registry.lookup(Generator, name), NextX)}
ALL: dict[str, dict[str, object]] = {
    name: {"type": name, "backbone": {**BACKBONE, "type": "modulated_transformer"}}
    if name in OF_LATENTS
    else {"type": name, "backbone": BACKBONE, "head": {"type": "categorical"}}
    for name in registry.names(Generator)
}


def build(name: str, spec: TokenSpec | LatentSpec | None = None, classes: int = CLASSES, **config: object) -> Generator:
    torch.manual_seed(0)
    spec = spec or (LATENTS if name in OF_LATENTS else SPEC)
    generator = registry.build(Generator, ALL[name] | config, spec, classes).eval()
    for parameter in generator.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return generator


def batch(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(SPEC.vocabulary, (rows, SPEC.length), generator=rng)
    return tokens, torch.arange(rows) % (CLASSES + 1)  # the null class too


def examples(name: str, rows: int = 6) -> dict[str, torch.Tensor]:
    """What a generator is trained on."""
    tokens, labels = batch(rows)
    if name in OF_LATENTS:
        return {"latents": torch.randn(rows, 16, 3, generator=torch.Generator().manual_seed(1)), "labels": labels}
    return {"tokens": tokens, "labels": labels}


def of_kind(kind: type[Generator]) -> list[str]:
    return [name for name in ALL if issubclass(registry.lookup(Generator, name), kind)]


class Repeated:
    """The same samples in each step."""

    def __init__(self, samples: dict[str, torch.Tensor]) -> None:
        self.samples = samples

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        return self.samples


def trained(make: Callable[[], Generator], batches: Batches, folder: Path, *until: int) -> dict[str, torch.Tensor]:
    """The weights after training up to each of these steps, each time as a new process would: a fresh model, the
    checkpoint's state."""
    for steps in until:
        generator = make()
        config = Train(steps=steps, batch_size=8, schedule="constant")
        train(generator, batches, config, checkpoints=folder, monitor=Silent(), seed=0)
        torch.rand(7)  # whatever else draws random numbers
    return generator.state_dict()


@pytest.mark.parametrize("name", ALL)
class TestGeneratorContract:
    """What holds for every generator."""

    @pytest.mark.parametrize("rows", [1, 2, 7])
    def test_losses_are_finite_and_train_everything(self, name: str, rows: int) -> None:
        generator = build(name)
        losses = generator(examples(name, rows))
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
        losses["loss"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in generator.parameters())

    def test_the_same_seed_gives_the_same_loss(self, name: str) -> None:
        generator = build(name).train()
        found = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            found.append(generator(examples(name))["loss"].item())
        assert found[0] == found[1]
        assert found[0] != found[2]  # dropout of conditions, at least

    def test_the_label_matters(self, name: str) -> None:
        generator = build(name)
        found = []
        for label in range(4):
            torch.manual_seed(0)
            found.append(generator(examples(name, 1) | {"labels": torch.tensor([label])})["loss"].item())
        assert all(abs(a - b) > 1e-5 for a, b in itertools.combinations(found, 2))

    def test_saved_and_loaded_it_is_the_same(self, name: str, tmp_path: Path) -> None:
        generator = build(name)
        spec = registry.resolve(Generator, ALL[name])
        artifact.save(tmp_path, Generator, spec.dump(), (generator.spec, CLASSES), generator)
        loaded = artifact.load(tmp_path, Generator)
        found = []
        for model in (generator, loaded):
            torch.manual_seed(0)
            found.append(model(examples(name))["loss"])
        assert torch.equal(*found)

    def test_it_learns_what_is_certain(self, name: str) -> None:
        """Each class has one sample. Of latents, the velocity has the variance of the noise, 1, to who does not look at it."""
        generator = build(name).train()
        labels = torch.arange(3).repeat(8)
        if name in OF_LATENTS:
            samples, measure, enough = {"latents": examples(name, 3)["latents"].repeat(8, 1, 1)}, "loss", 1.0
        else:
            tokens = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2], [1, 1, 1, 1, 1]]).repeat(8, 1)
            samples, measure, enough = {"tokens": tokens}, "bits_per_token", 0.15
        optimizer = torch.optim.AdamW(generator.parameter_groups(), lr=3e-3)
        torch.manual_seed(0)
        for _ in range(90):
            optimizer.zero_grad()
            generator(samples | {"labels": labels})["loss"].backward()
            optimizer.step()
        assert generator.eval()(samples | {"labels": labels})[measure] < enough

    def test_interrupted_training_is_the_same(self, name: str, tmp_path: Path) -> None:
        batches = Repeated(examples(name, 8) | {"labels": torch.arange(8) % CLASSES})
        whole, parts = (trained(lambda: build(name), batches, tmp_path / str(t), *t) for t in ((4,), (2, 4)))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("name", sorted(set(ALL) - OF_LATENTS))
def test_positions_of_several_codes(name: str) -> None:
    spec = TokenSpec((3, 4), 3, "sequence")
    generator = build(name, spec, head={"type": "factorised"})
    tokens = torch.stack([torch.randint(size, (6, 3)) for size in (3, 4)], -1).flatten(1)
    assert generator({"tokens": tokens, "labels": torch.arange(6) % 4})["loss"].isfinite()


@pytest.mark.parametrize("name", sorted(set(ALL) - OF_LATENTS))
def test_a_head_that_draws_latents_is_refused(name: str) -> None:
    with pytest.raises(ComponentError, match="'flow_matching' draws latents, not codes"):
        build(name, head={"type": "flow_matching"})


@pytest.mark.parametrize("name", of_kind(Autoregressive))
class TestAutoregressiveContract:
    @torch.no_grad()
    def test_sampling_sees_the_distribution_that_training_learns(self, name: str) -> None:
        generator = build(name)
        tokens, labels = batch()
        hidden, cache = generator.begin(labels)
        found = []
        for position in range(SPEC.length):
            found.append(generator.head(hidden).log_softmax(-1).gather(-1, tokens[:, position, None]))
            if position + 1 < SPEC.length:
                hidden = generator.extend(tokens[:, position, None, None], cache)[:, -1]
        torch.testing.assert_close(torch.cat(found, 1), generator.log_probs(tokens, labels), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_all_sequences_together_have_probability_one(self, name: str) -> None:
        generator = build(name, TokenSpec((3,), 4, "sequence"))
        every = torch.tensor(list(itertools.product(range(3), repeat=4)))
        for label in range(CLASSES + 1):
            total = generator.log_probs(every, torch.full((len(every),), label)).sum(1).double().exp().sum()
            assert total == pytest.approx(1.0, abs=1e-5)

    @torch.no_grad()
    def test_no_samples_have_no_likelihood(self, name: str) -> None:
        tokens, labels = batch(0)
        assert build(name).log_probs(tokens, labels).shape == (0, 5)

    @torch.no_grad()
    def test_a_rewound_state_has_forgotten(self, name: str) -> None:
        """What drafts need: several positions in one call, some of them taken back."""
        generator = build(name)
        tokens, labels = batch()
        codes = tokens[..., None]
        _, state = generator.begin(labels)
        before = state.position
        generator.extend(codes[:, :1], state)
        generator.extend(codes.flip(1)[:, :3], state)
        state.rewind(before + 1)
        found = generator.extend(codes[:, 1:4], state)
        _, fresh = generator.begin(labels)
        torch.testing.assert_close(found, generator.extend(codes[:, :4], fresh)[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", of_kind(Parallel))
class TestParallelContract:
    @torch.no_grad()
    def test_hidden_codes_are_not_looked_at_and_known_ones_are(self, name: str) -> None:
        generator = build(name)
        tokens, labels = batch()
        codes, known = tokens[..., None], torch.tensor([True, False, True, False, False]).expand(6, -1)
        expected = generator.predict(codes, known, labels)
        others = torch.where(known[..., None], codes, (codes + 1) % 7)
        assert torch.equal(generator.predict(others, known, labels), expected)
        changed = codes.clone()
        changed[:, 2] = (changed[:, 2] + 1) % 7
        assert (generator.predict(changed, known, labels) - expected).abs().amax((1, 2)).min() > 1e-4
        assert generator.predict(codes[:0], known[:0], labels[:0]).shape == (0, 5, 32)

    @torch.no_grad()
    def test_every_position_sees_every_other(self, name: str) -> None:
        generator = build(name)
        tokens, labels = batch(1)
        codes, known = tokens[..., None], torch.ones(1, 5, dtype=torch.bool)
        before = generator.predict(codes, known, labels)
        for position in range(5):
            changed = codes.clone()
            changed[:, position] = (changed[:, position] + 1) % 7
            assert (generator.predict(changed, known, labels) - before).abs().amax(2).min() > 1e-5


def test_the_loss_of_next_token_is_the_mean_of_log_probs() -> None:
    generator = build("next_token")
    tokens, labels = batch()
    losses = generator({"tokens": tokens, "labels": labels})
    expected = -generator.log_probs(tokens, labels).mean().detach()
    torch.testing.assert_close(losses["loss"], expected)
    assert float(losses["bits_per_token"]) == pytest.approx(float(expected) / math.log(2))


class TestRandomOrder:
    SPEC = TokenSpec((3,), 3, "sequence")
    EVERY = torch.tensor(list(itertools.product(range(3), repeat=3)))

    @torch.no_grad()
    def test_every_order_is_a_distribution_and_most_are_different_ones(self) -> None:
        model, labels = build("random_order", self.SPEC), torch.ones(27, dtype=torch.long)
        found = []
        for order in itertools.permutations(range(3)):
            log_p = model.log_probs(self.EVERY, labels, torch.tensor(order).expand(27, -1)).sum(1)
            assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)
            found.append(log_p)
        assert (found[0] - found[-1]).abs().max() > 1e-3

    @torch.no_grad()
    def test_sampling_in_an_order_sees_the_likelihood_of_that_order(self) -> None:
        model = build("random_order")
        tokens, labels = batch()
        torch.manual_seed(0)
        order = torch.rand(6, 5).argsort(1)
        expected = model.log_probs(tokens, labels, order)
        codes = tokens.gather(1, order)[..., None]  # in the order of generation
        hidden, state = model.begin(labels, order=order)
        assert torch.equal(model.arrange(codes, state)[..., 0], tokens)
        found = []
        for position in range(5):
            found.append(model.head(hidden).log_softmax(-1).gather(-1, codes[:, position])[:, 0])
            if position < 4:
                hidden = model.extend(codes[:, position : position + 1], state)[:, -1]
        torch.testing.assert_close(torch.stack(found, 1), expected.gather(1, order), atol=1e-5, rtol=1e-5)

    def test_orders_become_plain_step_by_step(self) -> None:
        model = build("random_order", anneal_from=10, anneal_to=20).train()
        shares = []
        for step in range(22):
            shares.append(float(model.randomness))
            model.after_step(step)
        assert shares[:11] == [1.0] * 11
        assert shares[15] == pytest.approx(0.5)
        assert shares[20:] == [0.0, 0.0]
        torch.manual_seed(0)
        model.randomness.fill_(0.5)
        orders = model.draw_order(4000, torch.device("cpu"))
        assert (orders.sort(1).values == torch.arange(5)).all()
        assert (orders == torch.arange(5)).all(1).float().mean() == pytest.approx(0.5 + 0.5 / 120, abs=0.03)

    def test_without_randomness_training_sees_the_likelihood(self) -> None:
        model = build("random_order", anneal_from=0, anneal_to=0, condition_dropout=0).train()
        tokens, labels = batch()
        loss = model({"tokens": tokens, "labels": labels})["loss"]
        torch.testing.assert_close(loss, -model.log_probs(tokens, labels).mean())

    def test_interrupted_training_goes_on_with_its_randomness(self, tmp_path: Path) -> None:
        batches = Repeated(examples("random_order", 8) | {"labels": torch.arange(8) % CLASSES})
        whole, parts = (
            trained(lambda: build("random_order", anneal_from=1, anneal_to=6), batches, tmp_path / str(t), *t)
            for t in ((5,), (3, 5))
        )
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
        assert float(whole["randomness"]) == pytest.approx(1 / 5)

    def test_annealing_backwards_is_refused(self) -> None:
        with pytest.raises(registry.ComponentError, match="anneal_from"):
            build("random_order", anneal_from=5, anneal_to=4)


class TestMasked:
    def test_as_many_positions_are_hidden_as_the_schedule_says_each_as_often(self) -> None:
        generator = build("masked", TokenSpec((7,), 20, "sequence"), schedule="linear")
        torch.manual_seed(0)
        hidden = generator.hide(20_000, torch.device("cpu"))
        counts = hidden.sum(1)
        assert counts.min() == 1 and counts.max() == 20
        assert torch.bincount(counts, minlength=21)[1:].float().std() < 100  # uniform: 1,000 of each, std 31
        assert (hidden.float().mean(0) - hidden.float().mean()).abs().max() < 0.02

    @pytest.mark.parametrize("schedule", ["cosine", "linear", "square", "truncated_normal"])
    def test_schedules_fall_from_all_to_few(self, schedule: str) -> None:
        shares = SHARES[schedule](torch.linspace(0, 1, 101, dtype=torch.float64))
        assert float(shares[0]) == pytest.approx(1)
        assert float(shares[-1]) == pytest.approx(0.7 if schedule == "truncated_normal" else 0, abs=1e-6)
        assert (shares.diff() <= 0).all()

    def test_the_truncated_normal_is_one(self) -> None:
        from scipy.stats import truncnorm

        u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
        expected = truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25).isf(u.numpy())
        torch.testing.assert_close(SHARES["truncated_normal"](u), torch.from_numpy(expected), atol=1e-6, rtol=1e-6)

    def test_the_loss_is_that_of_hidden_positions_only(self) -> None:
        generator = build("masked")
        tokens, labels = batch()
        torch.manual_seed(5)
        found = generator({"tokens": tokens, "labels": labels})["loss"]
        torch.manual_seed(5)
        hidden = generator.hide(len(tokens), tokens.device)
        states = generator.predict(tokens[..., None], ~hidden, labels)
        expected = -generator.head(states).log_softmax(-1).gather(-1, tokens[..., None])[..., 0][hidden].mean()
        torch.testing.assert_close(found, expected)


class TestMaskedDiffusion:
    SPEC = TokenSpec((3,), 3, "sequence")

    @torch.no_grad()
    def test_the_loss_estimates_the_bound(self) -> None:
        generator = build("masked_diffusion", self.SPEC)
        tokens = torch.tensor([[0, 2, 1]])
        exact = generator.exact_bound(tokens, torch.tensor([1]))
        torch.manual_seed(0)
        draws = generator.bound(tokens.expand(40_000, -1), torch.ones(40_000, dtype=torch.long))
        error = float(draws.std()) / 200  # of the mean, were the draws independent; stratified they vary less
        assert float(draws.mean()) == pytest.approx(float(exact), abs=4 * error)

    def test_in_eval_too_every_row_meets_all_times(self) -> None:
        """The chance that all N positions are hidden at time t is t^N; over 1/t and uniform times its mean is 1/N."""
        generator = build("masked_diffusion", self.SPEC)
        generator.nats = lambda codes, known, condition: torch.eye(3)[0] * ~known.any(1, keepdim=True)  # type: ignore
        tokens, labels = torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long)
        torch.manual_seed(0)
        found = torch.stack([generator.bound(tokens, labels) for _ in range(3000)]).mean(0)
        torch.testing.assert_close(found, torch.full((4,), 1 / 3), atol=0.05, rtol=0)  # four standard deviations

    @torch.no_grad()
    def test_the_bound_is_above_the_likelihood_in_a_random_order(self) -> None:
        """Filling in one by one in a random order is what many steps of sampling do; its likelihood is enumerated."""
        generator = build("masked_diffusion", self.SPEC)
        tokens = torch.tensor(list(itertools.product(range(3), repeat=3)))
        labels = torch.ones(len(tokens), dtype=torch.long)
        likelihood = torch.zeros(len(tokens))
        orders = list(itertools.permutations(range(3)))
        for order in orders:
            known, log_p = torch.zeros(len(tokens), 3, dtype=torch.bool), torch.zeros(len(tokens))
            for position in order:
                states = generator.predict(tokens[..., None], known, labels)[:, position]
                log_p += generator.head(states).log_softmax(-1).gather(-1, tokens[:, position, None])[:, 0]
                known[:, position] = True
            likelihood += log_p.exp() / len(orders)
        assert float(likelihood.sum()) == pytest.approx(1, abs=1e-5)
        bound = generator.exact_bound(tokens, labels)
        assert (bound >= -likelihood.log() - 1e-5).all()
        assert (bound + likelihood.log()).max() > 1e-3  # and it is a bound, not the thing

    @torch.no_grad()
    def test_what_is_known_costs_nothing(self) -> None:
        generator = build("masked_diffusion")
        tokens, labels = batch()
        nats = generator.nats(tokens[..., None], torch.ones(6, 5, dtype=torch.bool), labels)
        assert torch.equal(nats, torch.zeros(6, 5))


class TestLabelDropout:
    def losses(self, dropout: float, seed: int, training: bool = True) -> torch.Tensor:
        generator = build("next_token", condition_dropout=dropout).train(training)
        tokens, labels = batch(4)
        labels = labels.clamp(max=CLASSES - 1)
        torch.manual_seed(seed)
        return torch.stack([generator({"tokens": tokens, "labels": labels})["loss"].detach() for _ in range(5)])

    def test_the_global_generator_decides(self) -> None:
        assert torch.equal(self.losses(0.5, 3), self.losses(0.5, 3))
        assert not torch.equal(self.losses(0.5, 3), self.losses(0.5, 4))

    def test_without_dropout_or_outside_training_nothing_is_drawn(self) -> None:
        for losses in (self.losses(0.0, 3), self.losses(0.5, 3, training=False)):
            assert (losses == losses[0]).all()

    def test_the_share_of_dropped_labels(self) -> None:
        generator = build("next_token", condition_dropout=0.1).train()
        seen: list[torch.Tensor] = []
        generator.conditioner.embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        torch.manual_seed(0)
        generator(
            {"tokens": torch.zeros(4000, SPEC.length, dtype=torch.long), "labels": torch.zeros(4000, dtype=torch.long)}
        )
        share = (seen[0] == CLASSES).float().mean()
        assert share == pytest.approx(0.1, abs=0.02)  # four standard deviations
        assert ((seen[0] == CLASSES) | (seen[0] == 0)).all()

    def test_interrupted_training_drops_the_same_labels(self, tmp_path: Path) -> None:
        tokens, labels = batch(64)
        batches = TokenBatches(tokens.numpy(), labels.numpy() % CLASSES, None, 8, 0)
        whole, parts = (
            trained(lambda: build("next_token", condition_dropout=0.5), batches, tmp_path / str(t), *t)
            for t in ((6,), (2, 6))
        )
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


class TestStage:
    """The stage body on real files: tokens in, a loadable generator and its bits per token out."""

    TRAIN: ClassVar = {"steps": 60, "batch_size": 32, "lr": 3e-3, "log_every": 20}

    def run(self, folder: Path) -> tuple[Path, dict[str, float]]:
        from flows import generator
        from flows.context import StageContext

        run, output, work = folder / "run", folder / "output", folder / "work"
        (run / "outputs" / "tokens").mkdir(parents=True)
        output.mkdir()
        work.mkdir()
        about = {"spec": asdict(SPEC), "classes": ["a", "b", "c"], "target_classes": ["a", "b", "c"]}
        (run / "outputs" / "tokens" / "tokens.json").write_text(json.dumps(about))
        sentences = np.array([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2], [1, 1, 1, 1, 1]])
        for split, rows in (("train", 90), ("held_out", 30)):
            labels = np.arange(rows) % 3
            folder = run / "outputs" / "tokens" / split
            folder.mkdir()
            np.save(folder / "part-00000-000.tokens.npy", sentences[labels].astype(np.uint8))
            np.save(folder / "part-00000-000.labels.npy", labels)
        section = registry.resolve(Generator, ALL["next_token"]).dump() | {"train": self.TRAIN}
        recipe = {"seed": 0, "mixture": None, "generator": section}
        return output, generator.body(StageContext(run, "generator", recipe, output, work))

    @pytest.mark.slow
    def test_it_learns_the_tokens_and_says_how_well(self, tmp_path: Path) -> None:
        output, metrics = self.run(tmp_path)
        trained = artifact.load(output, Generator)
        assert (trained.spec, trained.classes) == (SPEC, 3)
        assert metrics["parameters"] == sum(p.numel() for p in trained.parameters())
        labels = torch.arange(30) % 3
        tokens = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2], [1, 1, 1, 1, 1]])[labels]
        with torch.no_grad():
            bits = float(-trained.log_probs(tokens, labels).mean()) / math.log(2)
        assert metrics["held_out.bits_per_token"] == pytest.approx(bits, abs=1e-5)
        assert bits < 0.2
        assert "target.bits_per_token" not in metrics  # there is no target

    @pytest.mark.slow
    def test_twice_the_same(self, tmp_path: Path) -> None:
        (first, _), (second, _) = self.run(tmp_path / "a"), self.run(tmp_path / "b")
        assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
