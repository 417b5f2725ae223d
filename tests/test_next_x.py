"""Next-X prediction: entities, masks, the cache, and what a single entity is (exact checks of xAR)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from components import artifact, registry
from components.generators._entities import ENTITIES
from components.generators.next_x import NextX
from components.interfaces import Generator, LatentSpec
from components.registry import ComponentError
from components.sampling.entity_flow import EntityFlow

SPEC, CLASSES = LatentSpec(3, 16, (4, 4)), 3
BACKBONE = {"type": "modulated_transformer", "depth": 2, "width": 32, "heads": 2, "axes": 2}


def build(spec: LatentSpec = SPEC, **config: object) -> NextX:
    torch.manual_seed(0)
    model = registry.build(Generator, {"type": "next_x", "backbone": BACKBONE, **config}, spec, CLASSES).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    assert isinstance(model, NextX)
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([0, 1, 2, 3, 1])
LATENTS = torch.randn(5, 16, 3, generator=rng(1))


@pytest.mark.parametrize("name", ENTITIES)
class TestEntities:
    def test_they_are_all_positions_once(self, name: str) -> None:
        groups = ENTITIES[name](4, 6, 2)
        assert groups.flatten().sort().values.tolist() == list(range(24))

    def test_split_and_join_are_inverse(self, name: str) -> None:
        model = build(entity=name)
        assert torch.equal(model.join(model.split(LATENTS)), LATENTS)

    def test_the_mask_is_that_of_brute_force(self, name: str) -> None:
        model = build(entity=name)
        for query in range(16):
            for key in range(16):
                assert bool(model.mask[query, key]) == (int(model.entity[query]) >= int(model.entity[key]))


def test_a_cell_is_neighbours_and_a_subsample_is_spread() -> None:
    assert ENTITIES["cell"](4, 4, 2)[1].tolist() == [2, 3, 6, 7]
    assert ENTITIES["subsample"](4, 4, 2)[1].tolist() == [1, 3, 9, 11]
    with pytest.raises(ComponentError, match="3 does not divide a grid of 4 x 4"):
        build(size=3)


@torch.no_grad()
def test_later_entities_are_not_seen() -> None:
    model, times = build(), torch.rand(5, 4, generator=rng())
    noisy = model.split(LATENTS)
    changed = noisy.clone()
    changed[:, 2] += 1
    before, after = (model.velocity(x, times, LABELS) for x in (noisy, changed))
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] - after[:, 2:]).abs().amax((1, 2, 3)).min() > 1e-4


@torch.no_grad()
def test_each_entity_hears_its_own_time() -> None:
    model, noisy = build(), build().split(LATENTS)
    times = torch.rand(5, 4, generator=rng())
    other = times.clone()
    other[:, 3] += 0.1  # the last one, which nobody else sees
    before, after = (model.velocity(noisy, t, LABELS) for t in (times, other))
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3] - after[:, 3]).abs().max() > 1e-4


@torch.no_grad()
def test_with_the_cache_is_as_with_everything_clean_before() -> None:
    model, clean = build(), build().split(LATENTS)
    cache = model.backbone.new_cache(5, clean.device, clean.dtype)
    for entity in range(4):
        noisy = torch.randn(5, 1, 4, 3, generator=rng(entity))
        times = torch.full((5, 1), 0.7)
        before = cache.position
        found = model.velocity(noisy, times, LABELS, entity, cache)
        cache.rewind(before)
        whole = torch.cat([clean[:, :entity], noisy], 1)
        all_times = torch.cat([torch.zeros(5, entity), times], 1)
        expected = model.velocity(whole, all_times, LABELS)[:, entity:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        model.velocity(clean[:, entity : entity + 1], torch.zeros(5, 1), LABELS, entity, cache)


def test_the_loss_is_the_error_of_all_velocities() -> None:
    model = build()
    torch.manual_seed(3)
    found = model({"latents": LATENTS, "labels": LABELS})["loss"]
    torch.manual_seed(3)
    clean = model.split(LATENTS)
    times, noise = torch.randn(5, 4).sigmoid(), torch.randn_like(clean)
    noisy = (1 - times)[:, :, None, None] * clean + times[:, :, None, None] * noise
    expected = (model.velocity(noisy, times, LABELS) - (noise - clean)).square().mean()
    torch.testing.assert_close(found, expected)


def test_one_entity_is_plain_flow_matching() -> None:
    """The whole image as one entity: the loss and the Euler sampler of any flow model, step for step."""
    model = build(entity="image")
    torch.manual_seed(3)
    found = model({"latents": LATENTS, "labels": LABELS})["loss"]
    torch.manual_seed(3)
    times, noise = torch.randn(5, 1).sigmoid(), torch.randn(5, 1, 16, 3)
    noisy = torch.lerp(LATENTS[:, None], noise, times[:, :, None, None])
    expected = (model.velocity(noisy, times, LABELS)[:, 0] - (noise[:, 0] - LATENTS)).square().mean()
    torch.testing.assert_close(found, expected)
    drawn = EntityFlow(steps=7, stochasticity=0).sample(model, LABELS, rng())
    x = torch.randn(5, 16, 3, generator=rng())
    with torch.no_grad():
        for step in range(7, 0, -1):
            x = x - model.velocity(x[:, None], torch.full((5, 1), step / 7), LABELS)[:, 0] / 7
    torch.testing.assert_close(drawn, x, atol=1e-5, rtol=1e-5)


def test_teacher_forcing_counts_one_entity_after_a_clean_context() -> None:
    model = build(context="clean")
    seen: list[torch.Tensor] = []
    velocity = model.velocity
    model.velocity = lambda noisy, times, condition: seen.append(times) or velocity(noisy, times, condition)  # type: ignore
    loss = model({"latents": LATENTS, "labels": LABELS})["loss"]
    assert loss.isfinite()
    assert ((seen[0] > 0).sum(1) == 1).all()


class TestSampling:
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_shape_and_reproducibility(self, guidance: float) -> None:
        sampler = EntityFlow(steps=3, guidance=guidance)
        drawn = sampler.sample(build(), LABELS, rng())
        assert drawn.shape == (5, 16, 3) and drawn.isfinite().all()
        assert torch.equal(drawn, sampler.sample(build(), LABELS, rng()))
        assert not torch.equal(drawn, sampler.sample(build(), LABELS, rng(1)))
        assert sampler.sample(build(), LABELS[:0], rng()).shape == (0, 16, 3)

    def test_guidance_grows_from_none(self) -> None:
        assert [EntityFlow(guidance=2.5).scale(i, 4) for i in range(4)] == [1.0, 1.5, 2.0, 2.5]
        model = build()
        guided, plain = (
            EntityFlow(steps=3, guidance=g, stochasticity=0).sample(model, LABELS, rng()) for g in (4.0, 1.0)
        )
        first, rest = model.split(guided - plain).split([1, 3], 1)
        assert first.abs().max() < 1e-4
        assert rest.abs().max() > 1e-3

    def test_it_draws_what_it_has_learned(self) -> None:
        """Two classes, each a constant picture: after a short training the samples of a class are near it."""
        torch.manual_seed(0)
        model = build(condition_dropout=0.0).train()
        targets = torch.stack([torch.full((16, 3), 1.0), torch.full((16, 3), -1.0)])
        optimizer = torch.optim.AdamW(model.parameter_groups(), lr=3e-3)
        for _ in range(150):
            labels = torch.randint(2, (32,))
            optimizer.zero_grad()
            model({"latents": targets[labels], "labels": labels})["loss"].backward()
            optimizer.step()
        for stochasticity in (0.0, 1.0):
            sampler = EntityFlow(steps=12, stochasticity=stochasticity)
            drawn = sampler.sample(model, torch.arange(2).repeat_interleave(8), rng())
            assert (drawn.view(2, 8, -1).mean(1) - targets.view(2, -1)).abs().mean() < 0.25


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = build()
    config = registry.resolve(Generator, {"type": "next_x", "backbone": BACKBONE}).dump()
    artifact.save(tmp_path, Generator, config, (SPEC, CLASSES), model)
    loaded = artifact.load(tmp_path, Generator)
    drawn = EntityFlow(steps=2).sample(model, LABELS, rng())
    assert torch.equal(drawn, EntityFlow(steps=2).sample(loaded, LABELS, rng()))


def test_a_backbone_without_modulation_is_refused() -> None:
    with pytest.raises(ComponentError, match="modulated_transformer"):
        build(backbone={"type": "transformer", "depth": 1, "width": 32, "heads": 2})
