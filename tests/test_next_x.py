"""Next-X prediction: entities, masks, the cache, and what a single entity is (exact checks of xAR)."""

from __future__ import annotations

import pytest
import torch

from components import registry
from components.backbones._sequence import coordinates
from components.generators._entities import ENTITIES, Entity
from components.generators.next_x import NextX
from components.interfaces import Generator, LatentSpec
from components.registry import ComponentError
from components.sampling.ancestral import Ancestral
from components.sampling.entity_flow import EntityFlow

SPEC, CLASSES = LatentSpec(3, 16, (4, 4)), 3
BACKBONE = {"type": "modulated_transformer", "depth": 2, "width": 32, "heads": 2, "axes": 2}


def build(kind: str = "next_x", spec: LatentSpec = SPEC, **config: object) -> NextX:
    torch.manual_seed(0)
    model = registry.build(Generator, {"type": kind, "backbone": BACKBONE, **config}, spec, CLASSES).eval()
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
    def test_split_and_join_are_inverse(self, name: Entity) -> None:
        latents = torch.randn(3, 24, 2)
        partition = ENTITIES[name](4, 6, 2)
        sequence = partition.split(latents)
        assert sequence.shape == (3, sum(partition.sizes), 2)
        assert torch.equal(partition.join(sequence), latents)

    def test_every_position_is_there_once(self, name: Entity) -> None:
        partition = ENTITIES[name](4, 6, 2)
        found = partition.place if name != "scale" else partition.place[-partition.sizes[-1] :]
        assert found.sort().values.tolist() == list(range(24))
        assert torch.bincount(partition.entity).tolist() == partition.sizes

    def test_the_mask_is_that_of_brute_force(self, name: Entity) -> None:
        model = build(entity=name)
        whose = [entity for entity, size in enumerate(model.partition.sizes) for _ in range(size)]
        expected = [[query >= key for key in whose] for query in whose]
        assert model.mask.tolist() == expected

    @torch.no_grad()
    def test_later_entities_are_not_seen(self, name: Entity) -> None:
        model, noisy = build(entity=name), build(entity=name).partition.split(LATENTS)
        times, last = torch.rand(5, model.entities, generator=rng()), model.begins[-2]
        changed = noisy.clone()
        changed[:, last:] += 1
        before, after = (model.velocity(x, times, LABELS) for x in (noisy, changed))
        assert torch.equal(before[:, :last], after[:, :last])
        assert (before[:, last:] - after[:, last:]).abs().amax((1, 2)).min() > 1e-4

    @torch.no_grad()
    def test_with_the_cache_is_as_with_everything_clean_before(self, name: Entity) -> None:
        model, clean = build(entity=name), build(entity=name).partition.split(LATENTS)
        cache = model.backbone.new_cache(5, clean.device, clean.dtype)
        for entity in range(model.entities):
            begin, end = model.begins[entity : entity + 2]
            noisy, times = torch.randn(5, end - begin, 3, generator=rng(entity)), torch.full((5, 1), 0.7)
            before = cache.position
            found = model.velocity(noisy, times, LABELS, entity, cache)
            cache.rewind(before)
            whole = torch.cat([clean[:, :begin], noisy], 1)
            all_times = torch.cat([torch.zeros(5, entity), times], 1)
            expected = model.velocity(whole, all_times, LABELS)[:, begin:]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            model.velocity(clean[:, begin:end], torch.zeros(5, 1), LABELS, entity, cache)

    def test_it_is_trained_and_drawn_from(self, name: Entity) -> None:
        model = build(entity=name)
        model({"latents": LATENTS, "labels": LABELS})["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        drawn = EntityFlow(steps=2, guidance=2.0).sample(model, LABELS, rng())
        assert drawn.shape == (5, 16, 3) and drawn.isfinite().all()


@pytest.mark.parametrize("name", ENTITIES)
def test_positions_turn_by_where_they_stand_on_the_grid(name: Entity) -> None:
    model, seen = build(entity=name), []
    run = model.backbone.forward
    model.backbone.forward = lambda *given, **named: seen.append(named["positions"]) or run(*given, **named)  # type: ignore
    model({"latents": LATENTS, "labels": LABELS})
    place = model.partition.place
    expected = torch.stack([place // 4, place % 4], 1) + 1  # rows and columns count from one
    assert torch.equal(coordinates(model.backbone.shape, 2)[seen[0]], expected)


def test_what_entities_are() -> None:
    assert ENTITIES["cell"](4, 4, 2).place.view(4, 4)[1].tolist() == [2, 3, 6, 7]
    assert ENTITIES["subsample"](4, 4, 2).place.view(4, 4)[1].tolist() == [1, 3, 9, 11]
    scales = ENTITIES["scale"](4, 4, 2)
    assert scales.sizes == [1, 4, 16]
    sequence = scales.split(LATENTS)
    torch.testing.assert_close(sequence[:, 0], LATENTS.mean(1))
    torch.testing.assert_close(sequence[:, 2], LATENTS[:, [2, 3, 6, 7]].mean(1))  # the second of 2 x 2
    assert scales.place[:5].tolist() == [10, 5, 7, 13, 15]
    with pytest.raises(ComponentError, match="3 does not divide a grid of 4 x 4"):
        build(size=3)


@torch.no_grad()
def test_each_entity_hears_its_own_time() -> None:
    model, noisy = build(), build().partition.split(LATENTS)
    times = torch.rand(5, 4, generator=rng())
    other = times.clone()
    other[:, 3] += 0.1  # the last one, which nobody else sees
    before, after = (model.velocity(noisy, t, LABELS) for t in (times, other))
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] - after[:, 12:]).abs().max() > 1e-4


def test_the_loss_is_the_error_of_all_velocities() -> None:
    model = build()
    torch.manual_seed(3)
    found = model({"latents": LATENTS, "labels": LABELS})["loss"]
    torch.manual_seed(3)
    clean = model.partition.split(LATENTS)
    times, noise = torch.randn(5, 4).sigmoid(), torch.randn_like(clean)
    t = times.repeat_interleave(4, 1)[..., None]  # four positions a cell
    expected = (model.velocity((1 - t) * clean + t * noise, times, LABELS) - (noise - clean)).square().mean()
    torch.testing.assert_close(found, expected)


def test_one_entity_is_plain_flow_matching() -> None:
    """The whole image as one entity: the loss and the Euler sampler of any flow model, step for step."""
    model = build(entity="image")
    torch.manual_seed(3)
    found = model({"latents": LATENTS, "labels": LABELS})["loss"]
    torch.manual_seed(3)
    times, noise = torch.randn(5, 1).sigmoid(), torch.randn(5, 16, 3)
    noisy = torch.lerp(LATENTS, noise, times[:, :, None])
    expected = (model.velocity(noisy, times, LABELS) - (noise - LATENTS)).square().mean()
    torch.testing.assert_close(found, expected)
    drawn = EntityFlow(steps=7, stochasticity=0).sample(model, LABELS, rng())
    x = torch.randn(5, 16, 3, generator=rng())
    with torch.no_grad():
        for step in range(7, 0, -1):
            x = x - model.velocity(x, torch.full((5, 1), step / 7), LABELS) / 7
    torch.testing.assert_close(drawn, x, atol=1e-5, rtol=1e-5)


def test_teacher_forcing_counts_one_entity_after_a_clean_context() -> None:
    model = build("next_x_teacher_forced")
    torch.manual_seed(3)
    found = model({"latents": LATENTS, "labels": LABELS})["loss"]
    torch.manual_seed(3)
    clean = model.partition.split(LATENTS)
    times, counted = model.noise_levels(5, clean.device)
    noise = torch.randn_like(clean)
    assert torch.equal(times > 0, counted) and (counted.sum(1) == 1).all()
    with torch.no_grad():
        errors = []
        for row, entity in counted.nonzero().tolist():
            here, t = slice(4 * entity, 4 * entity + 4), times[row, entity]
            own = (1 - t) * clean[row, here] + t * noise[row, here]
            context = torch.cat([clean[row, : here.start], own])[None]  # what comes later is not even there
            velocity = model.velocity(context, times[row : row + 1, : entity + 1], LABELS[row : row + 1])[0, here]
            errors.append((velocity - (noise - clean)[row, here]).square().mean())
    torch.testing.assert_close(found, torch.stack(errors).mean())


class TestSampling:
    @pytest.mark.parametrize("guidance", [1.0, 2.0])
    def test_shape_and_reproducibility(self, guidance: float) -> None:
        sampler = EntityFlow(steps=3, guidance=guidance)
        drawn = sampler.sample(build(), LABELS, rng())
        assert drawn.shape == (5, 16, 3) and drawn.isfinite().all()
        assert not drawn.requires_grad and not drawn.is_inference()
        assert torch.equal(drawn, sampler.sample(build(), LABELS, rng()))
        assert not torch.equal(drawn, sampler.sample(build(), LABELS, rng(1)))
        assert sampler.sample(build(), LABELS[:0], rng()).shape == (0, 16, 3)

    def test_guidance_grows_from_none(self) -> None:
        assert [EntityFlow(guidance=2.5).scale(i, 4) for i in range(4)] == [1.0, 1.5, 2.0, 2.5]
        model = build()
        guided, plain = (
            EntityFlow(steps=3, guidance=g, stochasticity=0).sample(model, LABELS, rng()) for g in (4.0, 1.0)
        )
        first, rest = model.partition.split(guided - plain).split([4, 12], 1)
        assert first.abs().max() < 1e-4
        assert rest.abs().max() > 1e-3

    @pytest.mark.parametrize("entity", ["cell", "scale"])
    @torch.no_grad()
    def test_it_is_what_a_recomputation_without_cache_draws(self, entity: Entity) -> None:
        """All earlier entities once more in every step, clean at t = 0, for the condition and for none."""
        model, random = build(entity=entity), rng()
        drawn = EntityFlow(steps=3, guidance=2.0, stochasticity=0).sample(model, LABELS, rng())
        settled, null = torch.zeros(5, 0, 3), torch.full((5,), CLASSES)
        for number, size in enumerate(model.partition.sizes):
            x, last = torch.randn(5, size, 3, generator=random), model.entities - 1
            for step in range(3, 0, -1):
                times = torch.cat([torch.zeros(5, number), torch.full((5, 1), step / 3)], 1)
                asked, free = (model.velocity(torch.cat([settled, x], 1), times, c)[:, -size:] for c in (LABELS, null))
                x = x - (free + (1 + number / last) * (asked - free)) / 3
            settled = torch.cat([settled, x], 1)
        torch.testing.assert_close(drawn, model.partition.join(settled), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
    def test_it_draws_from_the_distribution_whose_velocity_it_follows(self, stochasticity: float) -> None:
        """Latents N(m, s^2): the velocity is known, and whatever the noise on the way, mean and deviation come out."""
        model, m, s = build(), 1.5, 0.5

        def velocity(x: torch.Tensor, times: torch.Tensor, *others: object) -> torch.Tensor:
            t = times[:, :, None]
            variance, covariance = ((1 - t) * s) ** 2 + t**2, t - (1 - t) * s**2
            return -m + covariance / variance * (x - (1 - t) * m)

        model.velocity = velocity  # type: ignore[assignment, method-assign]
        sampler = EntityFlow(steps=200, stochasticity=stochasticity)
        drawn = sampler.sample(model, torch.zeros(1000, dtype=torch.long), rng())  # 48,000 numbers
        assert float(drawn.mean()) == pytest.approx(m, abs=0.01)
        assert float(drawn.std()) == pytest.approx(s, abs=0.01)

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


def test_a_backbone_without_modulation_is_refused() -> None:
    with pytest.raises(ComponentError, match="modulated_transformer"):
        build(backbone={"type": "transformer", "depth": 1, "width": 32, "heads": 2})


def test_another_kind_of_generator_is_refused_by_name() -> None:
    from test_generators import build as other

    with pytest.raises(ValueError, match="choose another 'sampling.type'"):
        EntityFlow().sample(other("masked"), LABELS[:2], rng())
    with pytest.raises(ValueError, match="choose another 'sampling.type'"):
        Ancestral().sample(build(), LABELS, rng())
