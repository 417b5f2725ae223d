"""Generators: what begin and extend say is what training learns; labels are dropped as often as asked, reproducibly."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from components import artifact, registry
from components.data.batches import TokenBatches
from components.interfaces import Generator, Silent, TokenSpec
from components.training.config import Train
from components.training.trainer import train

SPEC, CLASSES = TokenSpec((7,), 5, "sequence"), 3
BACKBONE = {"type": "transformer", "depth": 2, "width": 32, "heads": 4}
CONFIGS = {"next_token": {"type": "next_token", "backbone": BACKBONE, "head": {"type": "categorical"}}}


def build(name: str, spec: TokenSpec = SPEC, classes: int = CLASSES, **config: object) -> Generator:
    torch.manual_seed(0)
    generator = registry.build(Generator, CONFIGS[name] | config, spec, classes).eval()
    for parameter in generator.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return generator


def batch(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(SPEC.vocabulary, (rows, SPEC.length), generator=rng)
    return tokens, torch.arange(rows) % (CLASSES + 1)  # the null class too


@pytest.mark.parametrize("name", registry.names(Generator))
class TestGeneratorContract:
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

    def test_the_loss_is_the_mean_of_log_probs_and_trains_everything(self, name: str) -> None:
        generator = build(name)
        tokens, labels = batch()
        losses = generator({"tokens": tokens, "labels": labels})
        expected = -generator.log_probs(tokens, labels).mean().detach()
        torch.testing.assert_close(losses["loss"], expected)
        assert float(losses["bits_per_token"]) == pytest.approx(float(expected) / math.log(2))
        losses["loss"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in generator.parameters())

    def test_the_label_matters(self, name: str) -> None:
        generator = build(name)
        tokens, _ = batch(1)
        rows = generator.log_probs(tokens.expand(4, -1), torch.arange(4))
        assert all((a - b).abs().max() > 1e-4 for a, b in itertools.combinations(rows, 2))

    def test_saved_and_loaded_it_is_the_same(self, name: str, tmp_path) -> None:
        generator = build(name)
        spec = registry.resolve(Generator, CONFIGS[name])
        artifact.save(tmp_path, Generator, spec.dump(), (SPEC, CLASSES), generator)
        tokens, labels = batch()
        assert torch.equal(
            artifact.load(tmp_path, Generator).log_probs(tokens, labels), generator.log_probs(tokens, labels)
        )

    def test_it_learns_what_is_certain(self, name: str) -> None:
        generator = build(name).train()
        tokens = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2], [1, 1, 1, 1, 1]]).repeat(8, 1)
        labels = torch.arange(3).repeat(8)
        optimizer = torch.optim.AdamW(generator.parameter_groups(), lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            generator({"tokens": tokens, "labels": labels})["loss"].backward()
            optimizer.step()
        assert generator.eval()({"tokens": tokens, "labels": labels})["bits_per_token"] < 0.1


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
        def trained(folder: Path, *until: int) -> dict[str, torch.Tensor]:
            tokens, labels = batch(64)
            generator: Generator
            for steps in until:  # each time a new process would start: a fresh model, the checkpoint's state
                generator = build("next_token", condition_dropout=0.5)
                config = Train(steps=steps, batch_size=8, schedule="constant")
                batches = TokenBatches(tokens.numpy(), labels.numpy() % CLASSES, None, 8, 0)
                train(generator, batches, config, checkpoints=folder, monitor=Silent(), seed=0)
                torch.rand(7)  # whatever else draws random numbers
            return generator.state_dict()

        whole, parts = trained(tmp_path / "whole", 6), trained(tmp_path / "parts", 2, 6)
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
        section = registry.resolve(Generator, CONFIGS["next_token"]).dump() | {"train": self.TRAIN}
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
