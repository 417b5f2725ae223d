"""Intervals of distances and shares: their parts by brute force, and how often they cover."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import t as student_t
from torch import Tensor

from components import registry
from components.evaluation._influence import Influence
from components.evaluation._mean import Mean, student
from components.evaluation._reservoir import Reservoir
from components.evaluation.fd import Moments, frechet_distance
from components.evaluation.kid import squared_discrepancy
from components.evaluation.precision_recall import inside, radii, share
from components.interfaces import EvaluationBatch, FeatureExtractor, Metric, TokenSpec


class Flat(FeatureExtractor):
    """The pixels are the features."""

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def logits(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def rows(count: int, rng: torch.Generator, width: int = 6, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Heavy tails, two humps, correlated: no normal distribution."""
    drawn = torch.randn(count, width, generator=rng, dtype=torch.float64)
    drawn *= torch.where(torch.rand(count, 1, generator=rng) < 0.3, 1.8, 0.6) * scale
    drawn[:, 0] += torch.where(torch.rand(count, generator=rng) < 0.5, 2.0, -2.0)
    drawn[:, 1] += 0.5 * drawn[:, 0] + shift
    return drawn


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    moments = Moments()
    moments.update(features)
    assert moments.mean is not None
    return moments.mean, moments.covariance()


class TestInfluence:
    def test_it_is_the_derivative_by_the_weight_of_an_image(self) -> None:
        """A distribution that moves by a share of `step` towards one image: the slope of the distance."""
        rng = torch.Generator().manual_seed(0)
        a, b = rows(200, rng), rows(150, rng, shift=0.7, scale=1.3)
        (ma, ca), (mb, cb) = gaussian(a), gaussian(b)
        influence, step = Influence(ma, ca, mb, cb), 1e-6

        def moved(mean: Tensor, covariance: Tensor, image: Tensor, step: float) -> tuple[Tensor, Tensor]:
            away = image - mean
            return mean + step * away, (1 - step) * covariance + step * (1 - step) * torch.outer(away, away)

        for index in range(4):
            up, down = (frechet_distance(*moved(ma, ca, a[index], s), mb, cb) for s in (step, -step))
            assert float(influence.first(a)[index]) == pytest.approx((up - down) / 2 / step, rel=1e-5)
            up, down = (frechet_distance(ma, ca, *moved(mb, cb, b[index], s)) for s in (step, -step))
            assert float(influence.second(b)[index]) == pytest.approx((up - down) / 2 / step, rel=1e-5)

    def test_it_averages_to_nothing_over_its_own_images(self) -> None:
        a = rows(300, torch.Generator().manual_seed(0))
        influence = Influence(*gaussian(a), *gaussian(2 * a + 1))
        assert float(influence.first(a).mean()) == pytest.approx(0.0, abs=0.1)  # covariances divide by n - 1
        assert float(influence.first(a).std()) > 1

    def test_there_is_none_without_an_inverse(self) -> None:
        few = rows(5, torch.Generator().manual_seed(0))
        many = rows(50, torch.Generator().manual_seed(1))
        assert not Influence(*gaussian(few), *gaussian(many)).found
        assert not Influence(*gaussian(many), *gaussian(few)).found
        assert Influence(*gaussian(many), *gaussian(many)).found

    @pytest.mark.parametrize(("shift", "scale"), [(0.6, 1.2), (0.0, 1.0)])
    def test_intervals_cover_the_mean_of_such_values(self, shift: float, scale: float) -> None:
        rng, found = torch.Generator().manual_seed(3), []
        for _ in range(200):
            a, b = rows(400, rng), rows(250, rng, shift=shift, scale=scale)
            sides = (*gaussian(a), *gaussian(b))
            influence = Influence(*sides)
            squared = influence.first(a).var() / 400 + influence.second(b).var() / 250
            found.append((frechet_distance(*sides), 1.96 * float(squared) ** 0.5))
        values, halves = torch.tensor(found).unbind(1)
        assert 0.90 <= float(((values - values.mean()).abs() <= halves).double().mean()) <= 1.0


def test_intervals_of_kernel_distances_cover_it() -> None:
    """Six blocks: Student's factor, not the normal one. The kernel distance is unbiased, so it is the true one."""
    rng, covered, ends = torch.Generator().manual_seed(0), 0, []
    for _ in range(300):
        mean = Mean()
        for _ in range(6):
            x, y = torch.randn(40, 3, generator=rng), torch.randn(40, 3, generator=rng) + 0.7
            mean.update(squared_discrepancy(x, y)[None])
        ends.append(mean.named("x", student(6)))
    true = sum(found["x"] for found in ends) / len(ends)
    covered = sum(found["x.low"] <= true <= found["x.high"] for found in ends)
    assert 0.91 <= covered / 300 <= 0.985
    assert student(6) == pytest.approx(student_t(5).ppf(0.975))


@pytest.mark.parametrize(("balls", "points", "shift"), [(400, 400, 1.0), (300, 900, 0.3)])
def test_intervals_of_precision_cover_the_mean_of_such_values(balls: int, points: int, shift: float) -> None:
    rng, found = torch.Generator().manual_seed(0), []
    for _ in range(120):
        real, drawn = torch.randn(balls, 4, generator=rng), torch.randn(points, 4, generator=rng)
        drawn[:, 0] += shift
        found.append(list(share(drawn, real, 3, "x").values()))
    values, low, high = torch.tensor(found).unbind(1)
    assert 0.88 <= float(((low <= values.mean()) & (values.mean() <= high)).double().mean()) <= 1.0
    binomial = float((values.mean() * (1 - values.mean()) / points).sqrt())
    assert float(values.std()) > 1.1 * binomial  # the balls' own variance is not nothing


def test_the_share_is_that_of_points_inside_and_too_few_balls_give_no_interval() -> None:
    rng = torch.Generator().manual_seed(0)
    real, drawn = torch.randn(39, 3, generator=rng), torch.randn(50, 3, generator=rng)
    expected = float(inside(drawn, real, radii(real, 3)).double().mean())
    assert share(drawn, real, 3, "x") == {"x": expected}
    assert set(share(drawn, real[:20], 1, "x")) == {"x", "x.low", "x.high"}
    everything = share(real, torch.cat([real] * 2), 3, "x")
    assert everything["x"] == 1.0 == pytest.approx(everything["x.high"]) and 0.5 < everything["x.low"] < 1.0


class TestReservoirsByNumber:
    def test_workers_keep_what_one_would_have_kept_in_the_same_order(self) -> None:
        features, numbers = torch.randn(300, 4), torch.arange(300)
        one, workers = Reservoir(50, 1), [Reservoir(50, 1) for _ in range(3)]
        one.update(features, numbers)
        for index, part in enumerate(torch.randperm(300).split(40)):
            workers[index % 3].update(features[part], numbers[part])
        for worker in workers[1:]:
            workers[0].merge(worker)
        assert torch.equal(workers[0].rows, one.rows)
        assert torch.equal(workers[0].keys, one.keys)

    def test_equal_pictures_with_different_numbers_are_drawn_apart(self) -> None:
        reservoir = Reservoir(100)
        reservoir.update(torch.cat([torch.zeros(500, 1), torch.ones(500, 1)]))
        assert reservoir.rows is not None
        assert 0.3 < float(reservoir.rows.mean()) < 0.7


def test_blocks_of_any_number_of_images_have_two_or_more() -> None:
    """25 images in 10 blocks: two or three each, so that every block has a pair."""
    metric = registry.build(Metric, {"type": "kid", "blocks": 10}, {"judge": Flat()}, TokenSpec((8,), 4, "sequence"))
    rng = torch.Generator().manual_seed(0)
    metric.update(EvaluationBatch(
        heldout=torch.randn(25, 1, 2, 3, generator=rng), samples=torch.randn(31, 1, 2, 3, generator=rng)
    ))  # fmt: skip
    found = metric.compute()
    assert set(found) == {"kid_judge", "kid_judge.low", "kid_judge.high"}
    assert all(math.isfinite(value) for value in found.values())
