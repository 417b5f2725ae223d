"""Metrics: every registered one streams, and each agrees with an independent reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _measured import NAMES, SPEC, build, pieces
from torch import Tensor

from components import registry
from components.evaluation.class_accuracy import wilson
from components.evaluation.diversity import spread
from components.evaluation.fd import Moments, frechet_distance
from components.evaluation.ssim import ssim
from components.interfaces import EvaluationBatch, FeatureExtractor, Metric


class Projection(FeatureExtractor):
    """A fixed random projection: features [B, 6], 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        self.weight = torch.randn(256, 6, generator=rng) / 16

    def features(self, images: Tensor) -> Tensor:
        return torch.tanh(images.double().flatten(1) @ self.weight.double())

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images.cumsum(1), images.square()]

    def logits(self, images: Tensor) -> Tensor:
        return self.features(images)[:, :3]


NETWORKS = {"judge": Projection(), "reward": Projection()}


def batch(seed: int = 0, real: int = 60, drawn: int = 90) -> EvaluationBatch:
    rng = torch.Generator().manual_seed(seed)
    heldout = torch.rand(real, 1, 16, 16, generator=rng) * 2 - 1
    noise = torch.randn(real, 1, 16, 16, generator=rng)
    return EvaluationBatch(
        heldout=heldout,
        heldout_labels=torch.arange(real) % 3,
        reconstructions=(heldout + 0.2 * noise).clamp(-1, 1),
        tokens=torch.randint(0, 32, (real, 4), generator=rng),
        samples=torch.rand(drawn, 1, 16, 16, generator=rng) * 2 - 1,
        sample_labels=torch.arange(drawn) % 3,
        numbers=torch.arange(max(real, drawn)),
    )


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    def build(self, name: str) -> Metric:
        return build(NETWORKS, name)

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_pieces_equal_one_batch(self, name: str, size: int) -> None:
        whole, streamed = self.build(name), self.build(name)
        whole.update(batch())
        for piece in pieces(batch(), size):
            streamed.update(piece)
        assert streamed.compute() == pytest.approx(whole.compute(), rel=1e-9, abs=1e-9)

    def test_the_first_name_is_its_own_and_values_are_finite(self, name: str) -> None:
        metric = self.build(name)
        metric.update(batch())
        values = metric.compute()
        assert next(iter(values)).startswith(name)
        assert all(np.isfinite(v) for v in values.values())

    def test_nothing_to_measure_gives_nothing(self, name: str) -> None:
        metric = self.build(name)
        metric.update(EvaluationBatch())
        assert metric.compute() == {}

    def test_direction_is_declared(self, name: str) -> None:
        assert self.build(name).better in ("higher", "lower")


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels: int) -> None:
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    x = rng.random((5, channels, 21, 17))
    y = np.clip(x + 0.2 * rng.standard_normal(x.shape), 0, 1)
    expected = [
        structural_similarity(
            a, b, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert ssim(torch.tensor(x), torch.tensor(y)).numpy() == pytest.approx(expected, abs=1e-12)


def test_ssim_of_equal_images_is_one_and_small_ones_are_refused() -> None:
    x = torch.rand(2, 1, 16, 16)
    assert ssim(x, x) == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="11x11"):
        ssim(x[..., :10, :10], x[..., :10, :10])


def test_psnr_is_that_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    whole = batch()
    metric = registry.build(Metric, {"type": "psnr"}, NETWORKS, SPEC)
    metric.update(whole)
    pairs = zip(whole.heldout.double().numpy(), whole.reconstructions.double().numpy(), strict=True)
    expected = np.mean([peak_signal_noise_ratio(a, b, data_range=2) for a, b in pairs])
    assert metric.compute()["psnr"] == pytest.approx(expected, abs=1e-9)
    exact = registry.build(Metric, {"type": "psnr"}, NETWORKS, SPEC)
    exact.update(EvaluationBatch(heldout=whole.heldout, reconstructions=whole.heldout))
    assert exact.compute()["psnr"] == pytest.approx(100.0)


def test_frechet_distance_is_that_of_a_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)) + 3
    b = rng.standard_normal((150, 12)) @ rng.standard_normal((12, 12))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    moments = []
    for rows in (a, b):
        moments.append(Moments())
        for part in np.array_split(rows, 7):
            moments[-1].update(torch.tensor(part))
    ours = frechet_distance(moments[0].mean, moments[0].covariance(), moments[1].mean, moments[1].covariance())
    assert ours == pytest.approx(expected, rel=1e-9)
    same = frechet_distance(moments[0].mean, moments[0].covariance(), moments[0].mean, moments[0].covariance())
    assert same == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_of_rank_deficient_covariances() -> None:
    """Fewer images than features: the closed form for diagonal covariances still holds."""
    a, b = torch.diag(torch.tensor([4.0, 1.0, 0.0]).double()), torch.diag(torch.tensor([1.0, 0.0, 0.0]).double())
    zero = torch.zeros(3).double()
    assert frechet_distance(zero, a, zero + 1, b) == pytest.approx(3 + (2 - 1) ** 2 + 1, abs=1e-9)


def test_moments_keep_their_precision_far_from_zero() -> None:
    rows = torch.randn(1000, 3, dtype=torch.float64) + 1e7
    moments = Moments()
    for part in rows.split(13):
        moments.update(part)
    assert moments.covariance().numpy() == pytest.approx(np.cov(rows.numpy(), rowvar=False), rel=1e-7, abs=1e-7)


def test_codebook_usage_and_perplexity() -> None:
    metric = registry.build(Metric, {"type": "codebook_usage"}, NETWORKS, SPEC)
    metric.update(EvaluationBatch(tokens=torch.arange(8).repeat(5, 1)))
    assert metric.compute() == pytest.approx({"codebook_usage": 8 / 32, "codebook_perplexity": 8.0})


def test_class_accuracy_counts_and_interval() -> None:
    metric = registry.build(Metric, {"type": "class_accuracy"}, NETWORKS, SPEC)
    samples = batch().samples
    truth = NETWORKS["judge"].logits(samples).argmax(-1)
    labels = torch.where(torch.arange(len(truth)) < 9, (truth + 1) % 3, truth)
    metric.update(EvaluationBatch(samples=samples, sample_labels=labels))
    values = metric.compute()
    assert values["class_accuracy"] == pytest.approx(1 - 9 / len(truth))
    from scipy.stats import binomtest

    expected = binomtest(len(truth) - 9, len(truth)).proportion_ci(method="wilson")
    assert (values["class_accuracy.low"], values["class_accuracy.high"]) == pytest.approx(tuple(expected), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


def test_spread_is_the_mean_over_pairs() -> None:
    rows = torch.randn(9, 4)
    expected = [float((rows[i] - rows[j]).norm()) for i in range(9) for j in range(9) if i != j]
    assert spread(rows) == pytest.approx(np.mean(expected), rel=1e-6)


def recognized(n: int, label: int) -> Tensor:
    """Images that the projection takes for class `label`, all different."""
    images = torch.rand(4000, 1, 16, 16, generator=torch.Generator().manual_seed(label)) * 2 - 1
    return images[NETWORKS["judge"].logits(images).argmax(-1) == label][:n]


def test_diversity_is_one_for_real_images_and_zero_for_a_collapsed_class() -> None:
    real, labels = torch.cat([recognized(40, k) for k in range(3)]), torch.arange(3).repeat_interleave(40)
    whole = EvaluationBatch(heldout=real, heldout_labels=labels, samples=real, sample_labels=labels)
    metric = registry.build(Metric, {"type": "diversity"}, NETWORKS, SPEC)
    metric.update(whole)
    assert metric.compute()["diversity"] == pytest.approx(1.0)
    collapsed = torch.cat([real[labels == k][:1].expand(40, -1, -1, -1) for k in range(3)])
    metric = registry.build(Metric, {"type": "diversity"}, NETWORKS, SPEC)
    metric.update(EvaluationBatch(heldout=real, heldout_labels=labels, samples=collapsed, sample_labels=labels))
    assert metric.compute()["diversity"] == pytest.approx(0.0, abs=1e-6)


def test_errors_do_not_pass_for_diversity() -> None:
    real, labels = torch.cat([recognized(40, k) for k in range(3)]), torch.arange(3).repeat_interleave(40)
    wrong = real.clone()
    wrong[::4] = real.roll(40, 0)[::4]  # a quarter shows another class
    metric = registry.build(Metric, {"type": "diversity"}, NETWORKS, SPEC)
    metric.update(EvaluationBatch(heldout=real, heldout_labels=labels, samples=wrong, sample_labels=labels))
    values = metric.compute()
    assert values["diversity.all"] > values["diversity"]
    assert values["diversity"] == pytest.approx(1.0, abs=0.05)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(registry.ComponentError, match="@judge"):
        registry.build(Metric, {"type": "fd", "network": "@jugde"}, NETWORKS, SPEC)


def test_a_single_shift_of_the_mean_is_its_square() -> None:
    zero, unit = torch.zeros(4).double(), torch.eye(4).double()
    assert frechet_distance(zero, unit, zero + 0.5, unit) == pytest.approx(4 * 0.25)
