"""What tokenizers and autoencoders are trained on: losses, adversary, changes between quantizer and decoder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from components import artifact, registry
from components.interfaces import (
    Adversary,
    Autoencoder,
    FeatureExtractor,
    ImageFormat,
    LatentChange,
    Quantizer,
    Silent,
    Tokenizer,
)
from components.quantizers.vq import VQ
from components.registry import ComponentError
from components.tokenizers.changes.neighbours import Neighbours, perturbed
from components.tokenizers.losses.perceptual import distance
from components.training.config import Train
from components.training.trainer import train

IMAGE = ImageFormat(16, 1)
VQ16 = {"type": "vq", "codebook_size": 16}
GRID = {"type": "grid", "width": 8, "dim": 4, "quantizer": VQ16}
QUERY = {"type": "query", "count": 6, "depth": 1, "width": 32, "heads": 2, "dim": 4, "quantizer": VQ16}
PATCH = {"type": "patch", "width": 8, "layers": 2}


@pytest.fixture(scope="module")
def judge() -> FeatureExtractor:
    torch.manual_seed(0)
    return registry.build(FeatureExtractor, {"type": "classifier", "width": 8}, IMAGE, 10).eval()


def build(choice: dict, **changes: object) -> Tokenizer:
    torch.manual_seed(0)
    return registry.build(Tokenizer, choice | changes, IMAGE)


def pictures(n: int = 8, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class TestPerceptual:
    CHOICE = GRID | {"losses": [{"type": "perceptual", "network": "@judge", "weight": 2.0}]}

    def test_it_is_lpips_without_weights(self, judge: FeatureExtractor) -> None:
        x, y = pictures(3), pictures(3, 2)
        expected = torch.zeros(3)
        layers = list(zip(judge.maps(x), judge.maps(y), strict=True))
        for a, b in layers:
            unit_a, unit_b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
            expected += (unit_a - unit_b).square().sum(1).mean((1, 2)) / len(layers)
        torch.testing.assert_close(distance(judge, x, y), expected)
        assert torch.equal(distance(judge, x, x), torch.zeros(3))

    def test_the_network_is_used_and_is_no_part_of_the_tokenizer(self, judge: FeatureExtractor, tmp_path) -> None:
        tokenizer = build(self.CHOICE)
        with pytest.raises(ValueError, match="no network '@judge'"):
            tokenizer({"images": pictures()})
        tokenizer.use({"judge": judge})
        loss = tokenizer({"images": pictures()})["loss"]
        loss.backward()
        assert tokenizer.encoder.layers[0].weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in judge.parameters())
        assert not any("judge" in name for name in tokenizer.state_dict())
        artifact.save(tmp_path, Tokenizer, self.CHOICE, (IMAGE,), tokenizer)
        loaded, tokens = artifact.load(tmp_path, Tokenizer), tokenizer.eval().encode(pictures())
        assert torch.equal(loaded.encode(pictures()), tokens)

    def test_a_network_that_is_not_there_is_named(self, judge: FeatureExtractor) -> None:
        with pytest.raises(ComponentError, match="there are: @reward"):
            build(self.CHOICE).use({"reward": judge})


class TestAdversary:
    def test_each_gets_the_gradient_of_alternating_steps(self) -> None:
        """The tokenizer that of the tokenizer's terms with a constant adversary, the adversary that of its own term."""
        once, apart = (build(GRID, adversary=PATCH) for _ in range(2))
        for tokenizer in (once, apart):
            torch.manual_seed(5)
            tokenizer.train()({"images": pictures()})  # fills the codebook
        torch.manual_seed(3)
        once({"images": pictures(seed=4)})["loss"].backward()
        adversary = apart.judged.adversary
        adversary.requires_grad_(False)
        torch.manual_seed(3)
        drawn: list[Tensor] = []
        handle = apart.decoder.register_forward_hook(lambda module, given, out: drawn.append(out))
        images = pictures(seed=4)
        latents = apart.latents(images)
        quantized = apart.quantizer(latents)
        picture = apart.draw(quantized.latents)
        handle.remove()
        reconstruction = (picture - images).square().mean() + (picture - images).abs().mean()
        verdict = -adversary.net(picture).mean()
        weight = adversary.adaptive(verdict, reconstruction, apart.decoder.last.weight)
        (reconstruction + quantized.losses["commitment"] + 0.5 * weight * verdict).backward()
        adversary.requires_grad_(True)
        real, fake = adversary.net(images), adversary.net(picture.detach())
        ((1 - real).relu().mean() + (1 + fake).relu().mean()).backward()
        for (name, p), q in zip(once.named_parameters(), apart.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=name)

    def test_the_adaptive_weight_evens_the_gradients(self) -> None:
        last = nn.Parameter(torch.randn(5))
        reconstruction, verdict = (last * 3).sum(), (last * torch.arange(5.0)).sum()
        adversary = registry.build(Adversary, PATCH, IMAGE)
        weight = adversary.adaptive(verdict, reconstruction, last)
        found = [torch.autograd.grad(term, last)[0].norm() for term in (reconstruction, weight * verdict)]
        torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)

    def test_before_its_start_the_tokenizer_does_not_listen(self) -> None:
        tokenizer = build(GRID, adversary=PATCH | {"start": 5}).train()
        for step, silent in ((4, True), (5, False)):
            tokenizer.before_step(step)
            assert (float(tokenizer({"images": pictures()})["adversarial"].detach()) == 0) == silent

    def test_it_trains_with_two_players_and_is_not_stored(self, tmp_path) -> None:
        class Batches:
            def batch(self, step: int) -> dict[str, Tensor]:
                return {"images": pictures(seed=step)}

        choice = GRID | {"adversary": PATCH | {"lecam": 0.01}}
        tokenizer = build(choice)
        before = {name: p.clone() for name, p in tokenizer.named_parameters()}
        rows: list[dict] = []

        class Rows(Silent):
            def log(self, step: int, metrics) -> None:  # type: ignore[no-untyped-def]
                rows.append(dict(metrics))

        config = Train(steps=6, batch_size=8, log_every=2)
        train(tokenizer, Batches(), config, checkpoints=tmp_path / "c", monitor=Rows(), seed=0)
        assert all(not torch.equal(p, before[name]) for name, p in tokenizer.named_parameters())
        assert {"adversarial", "adversary", "grad_norm.adversary"} <= set(rows[0])
        artifact.save(tmp_path / "t", Tokenizer, registry.resolve(Tokenizer, choice).dump(), (IMAGE,), tokenizer)
        from safetensors.torch import load_file

        assert not any("judged" in name for name in load_file(tmp_path / "t" / "model.safetensors"))
        loaded = artifact.load(tmp_path / "t", Tokenizer)
        assert torch.equal(loaded.encode(pictures()), tokenizer.encode(pictures()))
        more = train(loaded, Batches(), config, checkpoints=tmp_path / "more", monitor=Silent(), seed=1)
        assert more["adversary"] > 0  # one that starts anew

    def test_its_averages_follow_steps_that_count(self) -> None:
        adversary = registry.build(Adversary, PATCH | {"lecam": 0.01}, IMAGE).train()
        adversary.before_step(0)
        adversary.learn(pictures(), torch.full((8, 1, 16, 16), torch.nan))
        adversary.before_step(1)  # the step before was left out
        adversary.learn(pictures(4), pictures(4, 2))
        adversary.learn(pictures(4, 3), pictures(4, 4))  # in pieces
        real, drawn = torch.cat([pictures(4, 2), pictures(4, 4)]), torch.cat([pictures(4), pictures(4, 3)])
        assert torch.equal(adversary.averages, torch.zeros(2))
        adversary.after_step(1)
        with torch.no_grad():
            expected = 0.01 * torch.stack([adversary.net(real).mean(), adversary.net(drawn).mean()])
        torch.testing.assert_close(adversary.averages, expected)


class TestAnyLength:
    def test_the_first_tokens_alone_are_the_first_latents_alone(self) -> None:
        tokenizer = build(QUERY).eval()
        tokens = tokenizer.encode(pictures())
        for count in (1, 3, 6):
            sliced = tokenizer.quantizer(tokenizer.latents(pictures())).latents[:, :count]
            torch.testing.assert_close(tokenizer.decode(tokens[:, :count]), tokenizer.draw(sliced).clamp(-1, 1))
        assert tokenizer.bits(3) == 12.0
        with pytest.raises(ValueError, match="whole positions of 2"):
            build(QUERY, quantizer={"type": "rvq", "codebook_size": 16, "stages": 2}).decode(tokens[:, :3])

    def test_without_a_change_training_sees_all(self) -> None:
        seen: list[int] = []
        for choice in (QUERY, QUERY | {"change": {"type": "uniform_tail"}}):
            tokenizer = build(choice).train()
            draw = tokenizer.draw
            tokenizer.draw = lambda latents, draw=draw: seen.append(latents.shape[1]) or draw(latents)  # type: ignore
            torch.manual_seed(0)
            for _ in range(60):
                tokenizer({"images": pictures(2)})
            tokenizer.eval()({"images": pictures(2)})
        assert set(seen[:61]) == {6}
        assert set(seen[61:-1]) == {1, 2, 3, 4, 5, 6}
        assert seen[-1] == 6  # evaluation sees all

    @pytest.mark.parametrize(("change", "expected"), [
        ({"type": "uniform_tail"}, [1 / 4] * 4),
        ({"type": "nested", "stop": 0.5}, [1 / 2, 1 / 4, 1 / 8, 1 / 8]),
    ])  # fmt: skip
    def test_how_often_each_length_is_left(self, change: dict, expected: list[float]) -> None:
        made, latents = registry.build(LatentChange, change), torch.zeros(1, 4, 2)
        from components.interfaces import Quantized

        quantized = Quantized(latents, torch.zeros(1, 4, 1).long())
        torch.manual_seed(0)
        lengths = torch.tensor([made(latents, quantized, VQ(2), 0).shape[1] for _ in range(4000)])
        shares = torch.bincount(lengths, minlength=5)[1:] / 4000
        torch.testing.assert_close(shares, torch.tensor(expected), atol=0.03, rtol=0)

    def test_a_grid_cannot_lose_its_tail(self) -> None:
        with pytest.raises(ComponentError, match="drawn from all of its latents"):
            build(GRID, change={"type": "nested"})


class TestNeighbours:
    def quantizer(self) -> VQ:
        torch.manual_seed(0)
        quantizer = registry.build(Quantizer, VQ16, 4)
        assert isinstance(quantizer, VQ)
        return quantizer.eval()  # its codes are all different: those of a first batch may not be

    def test_replacements_are_among_the_nearest_and_as_many_as_said(self) -> None:
        quantizer, latents = self.quantizer(), torch.randn(400, 9, 4)
        codes = quantizer(latents).codes
        torch.manual_seed(1)
        found = perturbed(latents, codes, quantizer, rate=0.6, share=0.5, nearest=3)
        distances = torch.cdist(latents.flatten(0, 1), quantizer.codebook.table())
        allowed = distances.argsort(1)[:, :3].view(400, 9, 3)
        assert (found == allowed).any(-1).all()
        assert torch.equal(found[200:], codes[200:])  # exactly the first share of the images
        changed = (found != codes)[:200].float().mean()
        assert float(changed) == pytest.approx(0.6 * (1 - 1 / 3), abs=3 * math.sqrt(0.24 / 1800))

    @pytest.mark.parametrize("nothing", [{"rate": 0.0}, {"share": 0.0}, {"nearest": 1}])
    def test_with_nothing_to_change_nothing_changes(self, nothing: dict) -> None:
        quantizer, latents = self.quantizer(), torch.randn(8, 9, 4)
        quantized = quantizer(latents)
        assert torch.equal(Neighbours(**{"share": 1.0, **nothing})(latents, quantized, quantizer, 0), quantized.latents)

    def test_the_gradient_passes_straight_through(self) -> None:
        quantizer, latents = self.quantizer(), torch.randn(8, 9, 4, requires_grad=True)
        changed = Neighbours(share=1.0, nearest=5)(latents, quantizer(latents), quantizer, 0)
        weight = torch.randn_like(changed)
        (changed * weight).sum().backward()
        torch.testing.assert_close(latents.grad, weight)

    def test_strong_first_then_half(self) -> None:
        change = Neighbours(anneal_from=10, anneal_to=20)
        assert [change.strength(step) for step in (0, 10, 15, 20, 99)] == [1, 1, 0.75, 0.5, 0.5]

    def test_quantizers_of_several_codebooks_are_refused(self) -> None:
        tokenizer = build(GRID, quantizer={"type": "fsq", "levels": [4, 3]}, change={"type": "neighbours"}).train()
        with pytest.raises(ComponentError, match="choose 'vq'"):
            tokenizer({"images": pictures()})


class TestKLVAE:
    def build(self, **changes: object) -> Autoencoder:
        torch.manual_seed(0)
        return registry.build(Autoencoder, {"type": "kl_vae", "width": 8, "dim": 3, **changes}, IMAGE)

    def test_the_divergence_is_that_of_torch(self) -> None:
        from torch.distributions import Normal, kl_divergence

        vae = self.build()
        mean, log_variance = vae.posterior(pictures())
        expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0, 1)).sum(-1).mean()
        torch.testing.assert_close(vae({"images": pictures()})["kl"], expected.detach())

    def test_latents_have_about_unit_variance_after_training(self, tmp_path) -> None:
        class Batches:
            def batch(self, step: int) -> dict[str, Tensor]:
                return {"images": pictures(32, seed=step)}

        vae = self.build(kl_weight=1e-4)
        config = Train(steps=60, batch_size=32, lr=3e-3)
        train(vae, Batches(), config, checkpoints=tmp_path / "c", monitor=Silent(), seed=0)
        latents = vae.encode(pictures(200, seed=99))
        assert latents.shape == (200, 16, 3)
        assert 0.5 < float(latents.square().mean()) < 2
        artifact.save(tmp_path / "v", Autoencoder, {"type": "kl_vae", "width": 8, "dim": 3}, (IMAGE,), vae)
        loaded = artifact.load(tmp_path / "v", Autoencoder)
        assert torch.equal(loaded.encode(pictures()), vae.encode(pictures()))
        assert torch.equal(loaded.decode(latents[:4]), vae.decode(latents[:4]))

    def test_training_draws_and_encoding_does_not(self) -> None:
        vae = self.build().train()
        torch.manual_seed(0)
        first, second = (vae({"images": pictures()})["loss"] for _ in range(2))
        assert first != second
        assert torch.equal(vae.encode(pictures()), vae.encode(pictures()))

    def test_what_is_no_latent_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"expected latents \[B, 16, 3\]"):
            self.build().decode(torch.zeros(2, 15, 3))
        with pytest.raises(ValueError, match="not all finite"):
            self.build().decode(torch.full((1, 16, 3), torch.inf))
