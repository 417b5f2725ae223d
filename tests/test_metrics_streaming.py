"""Metrics over batches and workers: parts make the whole, intervals cover, memory is bounded, definitions hold."""

from __future__ import annotations

import pytest
import torch
from _measured import NAMES
from _measured import build as built
from torch import Tensor

from components import registry
from components.evaluation._mean import Mean
from components.evaluation._reservoir import Reservoir
from components.evaluation.fd import Moments, frechet_distance
from components.evaluation.kid import squared_discrepancy
from components.evaluation.precision_recall import inside, radii
from components.interfaces import EvaluationBatch, FeatureExtractor, ImageFormat, Metric


@pytest.fixture(scope="module")
def networks() -> dict[str, FeatureExtractor]:
    torch.manual_seed(0)
    return {
        "judge": registry.build(
            FeatureExtractor, {"type": "classifier", "width": 8, "features": 8}, ImageFormat(16, 1), 3
        ).eval()
    }


def batches(count: int = 6, size: int = 20) -> list[EvaluationBatch]:
    rng = torch.Generator().manual_seed(0)

    def pictures() -> Tensor:
        return torch.rand(size, 1, 16, 16, generator=rng) * 2 - 1

    return [
        EvaluationBatch(
            heldout=pictures(), heldout_labels=torch.arange(size) % 3, reconstructions=pictures(),
            tokens=torch.randint(32, (size, 4), generator=rng), samples=pictures(), sample_labels=torch.arange(size) % 3,
            numbers=torch.arange(size) + start,
        )
        for start in range(0, count * size, size)
    ]  # fmt: skip


def build(name: str, networks: dict[str, FeatureExtractor]) -> Metric:
    small = {"kid": {"blocks": 3, "block": 25}, "precision_recall": {"most": 80}, "linear_probe": {"images": 80}}
    return built(networks, name, **small.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
class TestMetricContract:
    def test_workers_together_measure_the_whole(self, name: str, networks: dict[str, FeatureExtractor]) -> None:
        """Each worker sees two batches, and some metrics keep fewer images than there are."""
        whole = build(name, networks)
        for batch in batches():
            whole.update(batch)
        workers = [build(name, networks) for _ in range(3)]
        for index, batch in enumerate(batches()):
            workers[index // 2].update(batch)
        for worker in workers[1:]:
            workers[0].merge(worker)
        found, expected = workers[0].compute(), whole.compute()
        assert found.keys() == expected.keys() and expected
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)

    def test_nothing_to_measure_gives_nothing(self, name: str, networks: dict[str, FeatureExtractor]) -> None:
        metric = build(name, networks)
        metric.update(EvaluationBatch())
        assert metric.compute() == {}

    def test_the_size_of_batches_does_not_matter(self, name: str, networks: dict[str, FeatureExtractor]) -> None:
        one, many = build(name, networks), build(name, networks)
        whole = batches(1, 60)[0]
        one.update(whole)
        for part in (slice(0, 1), slice(1, 30), slice(30, 60)):
            many.update(EvaluationBatch(**{key: value[part] for key, value in vars(whole).items()}))
        assert many.compute() == pytest.approx(one.compute(), rel=1e-6, abs=1e-9)


def test_the_interval_of_a_mean_covers_it() -> None:
    """400 repetitions of 200 exponential numbers: the 95 % interval holds the true mean in about so many."""
    rng, covered = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        mean = Mean()
        for part in torch.empty(200, dtype=torch.float64).exponential_(generator=rng).split(37):
            mean.update(part)
        found = mean.named("x")
        covered += found["x.low"] <= 1.0 <= found["x.high"]
    assert 0.90 <= covered / 400 <= 0.99


class TestReservoir:
    def test_every_row_is_equally_likely_to_stay(self) -> None:
        counts = torch.zeros(50)
        for seed in range(2000):
            reservoir = Reservoir(10, seed)
            for part in torch.arange(50.0)[:, None].split([1, 9, 20, 20]):
                reservoir.update(part)
            assert reservoir.rows is not None and len(reservoir.rows) == 10
            counts[reservoir.rows[:, 0].long()] += 1
        assert (counts / 2000 - 0.2).abs().max() < 0.04  # four and a half standard deviations

    def test_memory_stays_as_it_is(self) -> None:
        reservoir = Reservoir(16)
        for _ in range(200):
            reservoir.update(torch.randn(33, 4))
            assert reservoir.rows is not None and reservoir.rows.shape == (min(33, 16), 4)


def test_the_distance_of_gaussians_is_their_formula() -> None:
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    a, b = torch.rand(6, dtype=torch.float64) + 0.1, torch.rand(6, dtype=torch.float64) + 0.1
    m, n = torch.randn(2, 6, dtype=torch.float64)
    expected = (m - n).square().sum() + (a - b).square().sum()
    found = frechet_distance(m, torch.diag(a**2), n, torch.diag(b**2))
    assert found == pytest.approx(float(expected), rel=1e-10)


def test_moments_in_parts_are_those_of_numpy() -> None:
    import numpy as np

    features, moments = torch.randn(300, 7) * 3 + 100, Moments()
    for part in features.split([1, 99, 200]):
        moments.update(part)
    np.testing.assert_allclose(moments.covariance().numpy(), np.cov(features.double().numpy().T), rtol=1e-9)


def test_kid_is_the_unbiased_estimate_of_brute_force() -> None:
    x, y = torch.randn(7, 5), torch.randn(9, 5) + 0.5
    kernel = lambda a, b: float((a.double() @ b.double() / 5 + 1) ** 3)  # noqa: E731
    xx = sum(kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    yy = sum(kernel(y[i], y[j]) for i in range(9) for j in range(9) if i != j) / 72
    xy = sum(kernel(a, b) for a in x for b in y) / 63
    assert float(squared_discrepancy(x, y)) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_precision_and_recall_are_those_of_brute_force() -> None:
    real, drawn = torch.randn(40, 3), torch.randn(50, 3) * 1.5
    reach = radii(real, 3)
    for row, found in zip(real, reach, strict=True):
        assert float(found) == pytest.approx(sorted(float((row - other).norm()) for other in real)[3], rel=1e-5)
    expected = [any(float((point - r).norm()) <= float(k) for r, k in zip(real, reach, strict=True)) for point in drawn]
    assert inside(drawn, real, reach).tolist() == expected
    assert 0 < sum(expected) < 50
