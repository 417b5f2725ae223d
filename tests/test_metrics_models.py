"""Metrics of tokenizers and generators themselves: perturbed reconstructions, likelihoods, what a linear probe reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _measured import GENERATOR, SPEC, TOKENIZER, Patches, build, generator
from scipy.stats import binomtest, chisquare
from torch import Tensor
from torch.nn import functional as F

from components import registry
from components.evaluation._numbers import uniform
from components.evaluation.bits_per_token import orderless_bound
from components.evaluation.fd import Moments, frechet_distance
from components.evaluation.linear_probe import logistic, pooled
from components.evaluation.pfd import replaced
from components.generators.masked_diffusion import MaskedDiffusion
from components.interfaces import EvaluationBatch, FeatureExtractor, LatentSpec, Metric, Quantizer, TokenSpec
from components.registry import ComponentError
from components.tokenizers.changes.neighbours import neighbourhood


class Pixels(FeatureExtractor):
    """Features [B, 8]: a fixed linear map of the pixels."""

    weight = torch.randn(256, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / 16

    def features(self, images: Tensor) -> Tensor:
        return images.double().flatten(1) @ self.weight

    def logits(self, images: Tensor) -> Tensor:
        return self.features(images)[:, :3]


NETWORKS = {"judge": Pixels()}


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def heldout(images: Tensor, labels: Tensor | None = None) -> EvaluationBatch:
    labels = torch.arange(len(images)) % 3 if labels is None else labels
    return EvaluationBatch(
        heldout=images, heldout_labels=labels, tokens=TOKENIZER.encode(images), numbers=torch.arange(len(images))
    )


def measured(metric: Metric, batch: EvaluationBatch) -> dict[str, float]:
    metric.update(batch)
    return metric.compute()


class TestRandomNumbers:
    def test_they_follow_from_number_column_and_seed_alone(self) -> None:
        whole = uniform(torch.arange(50), 7, 3)
        assert torch.equal(uniform(torch.tensor([31, 4]), 5, 3), whole[[31, 4], :5])
        assert not torch.equal(uniform(torch.arange(50), 7, 4), whole)

    def test_they_are_uniform_and_independent(self) -> None:
        drawn = uniform(torch.arange(4000), 5, 0).numpy()
        assert drawn.min() >= 0 and drawn.max() < 1
        for column in (*drawn.T, drawn[:5].ravel()):
            assert chisquare(np.histogram(column, 20, (0, 1))[0]).pvalue > 1e-4
        other = uniform(torch.arange(4000), 5, 1).numpy()
        correlations = np.corrcoef(np.concatenate([drawn, np.roll(drawn, 1, 0), other], 1).T)
        assert np.abs(correlations - np.eye(15)).max() < 0.07  # 4.4 standard deviations


class TestPerturbedFrechetDistance:
    def test_replacements_are_near_and_as_many_as_said(self) -> None:
        images = pictures(500)
        latents, codes = TOKENIZER.latents(images), TOKENIZER.encode(images)
        near = neighbourhood(latents, TOKENIZER.quantizer, 3)
        found = replaced(codes, near, 0.6, uniform(torch.arange(500), 8, 2))
        distances = torch.cdist(latents.float().flatten(0, 1), TOKENIZER.quantizer.codebook.table())
        allowed = distances.argsort(1)[:, :3].view(500, 4, 3)
        assert (found[..., None] == allowed).any(-1).all()
        assert float((found != codes).double().mean()) == pytest.approx(0.4, abs=4 * math.sqrt(0.24 / 2000))
        shares = (found[..., None] == allowed).double().mean((0, 1))
        assert shares.tolist() == pytest.approx([0.6, 0.2, 0.2], abs=0.05)
        assert torch.equal(replaced(codes, near, 0.0, uniform(torch.arange(500), 8, 2)), codes)

    def test_at_rate_zero_it_is_the_distance_of_reconstructions(self) -> None:
        batch = heldout(pictures(80))
        values = measured(build(NETWORKS, "pfd", rates=[0.0]), batch)
        sides = []
        for images in (batch.heldout, TOKENIZER.decode(batch.tokens)):
            sides.append(Moments())
            sides[-1].update(NETWORKS["judge"].features(images))
        expected = frechet_distance(sides[0].mean, sides[0].covariance(), sides[1].mean, sides[1].covariance())
        assert values["pfd_judge"] == pytest.approx(expected, rel=1e-12)

    def test_it_is_the_mean_over_rates_and_grows_with_the_neighbourhood(self) -> None:
        # Made of eight of the codes, which the tokenizer draws as they are: all that is wrong comes from replacements.
        tokens = torch.randint(8, (300, 4), generator=torch.Generator().manual_seed(0))
        batch = heldout(TOKENIZER.decode(tokens))
        both = measured(build(NETWORKS, "pfd", rates=[0.0, 0.5]), batch)["pfd_judge"]
        near = measured(build(NETWORKS, "pfd", rates=[0.0]), batch)["pfd_judge"]
        metric = build(NETWORKS, "pfd", rates=[0.5, 0.5])
        values = measured(metric, batch)
        first, second = (frechet_distance(
            metric.real.mean, metric.real.covariance(), moments.mean, moments.covariance()
        ) for moments in metric.drawn)  # fmt: skip
        assert first != second  # each rate has random numbers of its own
        assert values["pfd_judge"] == pytest.approx((first + second) / 2, rel=1e-12)
        assert both == pytest.approx((near + second) / 2, rel=1e-9)
        grown = [measured(build(NETWORKS, "pfd", rates=[0.9], nearest=n), batch)["pfd_judge"] for n in (0.05, 0.3, 1.0)]
        assert near < grown[0] < grown[1] < grown[2]

    def test_batches_in_any_order_give_the_same(self) -> None:
        whole = heldout(pictures(120))
        forward, backward = build(NETWORKS, "pfd"), build(NETWORKS, "pfd")
        parts = [slice(0, 50), slice(50, 120)]
        for metric, order in ((forward, parts), (backward, parts[::-1])):
            for part in order:
                metric.update(EvaluationBatch(**{k: v[part] for k, v in vars(whole).items() if v is not None}))
        assert forward.compute() == pytest.approx(backward.compute(), rel=1e-9)

    def test_the_interval_covers_the_mean_of_such_values(self) -> None:
        found = torch.tensor([list(measured(build(NETWORKS, "pfd", rates=[0.7]), heldout(pictures(150, seed))).values())
                              for seed in range(120)])  # fmt: skip
        mean = found[:, 0].mean()
        covered = ((found[:, 1] <= mean) & (mean <= found[:, 2])).double().mean()
        assert 0.87 <= covered <= 1.0
        assert 0.7 < float((found[:, 2] - found[:, 1]).mean() / 3.92 / found[:, 0].std()) < 1.5

    def test_other_quantizers_are_refused(self) -> None:
        metric = registry.build(Metric, {"type": "pfd"}, NETWORKS, SPEC)
        other = Patches(registry.build(Quantizer, {"type": "lfq", "bits": 5}, 8))
        with pytest.raises(ComponentError, match="LFQ has none: choose quantizer 'vq'"):
            metric.use(other, None)


class TestBitsPerToken:
    def test_it_is_the_mean_of_log_probabilities(self) -> None:
        images = pictures(40)
        values = measured(build(NETWORKS, "bits_per_token"), heldout(images))
        labels = torch.arange(40) % 3
        with torch.no_grad():
            each = -GENERATOR.log_probs(TOKENIZER.encode(images), labels).sum(1) / math.log(2) / 4
        half = 1.959963984540054 * float(each.std()) / math.sqrt(40)
        assert values == pytest.approx({
            "bits_per_token": float(each.mean()), "bits_per_token.low": float(each.mean()) - half,
            "bits_per_token.high": float(each.mean()) + half, "bits_per_token.rate": float(each.mean()) * 4 / 256,
        })  # fmt: skip

    def test_a_generator_that_knows_nothing_needs_all_bits(self) -> None:
        ignorant = generator()
        for parameter in ignorant.head.parameters():
            torch.nn.init.zeros_(parameter)
        metric = registry.build(Metric, {"type": "bits_per_token"}, NETWORKS, SPEC)
        metric.use(TOKENIZER, ignorant)
        assert measured(metric, heldout(pictures(10)))["bits_per_token"] == pytest.approx(5.0)

    def test_probabilities_of_all_sequences_sum_to_one(self) -> None:
        small = generator(spec=TokenSpec((3,), 3, "sequence"))
        every = torch.cartesian_prod(*[torch.arange(3)] * 3)
        with torch.no_grad():
            total = small.log_probs(every, torch.zeros(27, dtype=torch.int64)).sum(1).exp().sum()
        assert float(total) == pytest.approx(1.0)

    def test_the_bound_of_filling_in_is_that_of_all_orders(self) -> None:
        made = generator("masked_diffusion")
        assert isinstance(made, MaskedDiffusion)
        tokens, labels = torch.tensor([[3, 17, 8, 31]]), torch.tensor([2])
        with torch.no_grad():
            exact = float(made.exact_bound(tokens, labels))
            rows = 3000
            found = orderless_bound(made, tokens.expand(rows, -1), labels.expand(rows), torch.arange(rows), 4)
        error = float(found.std()) / math.sqrt(rows)
        assert float(found.mean()) == pytest.approx(exact, abs=4 * error)
        assert error < 0.01 * exact

    def test_a_bound_says_so(self) -> None:
        metric = registry.build(Metric, {"type": "bits_per_token", "draws": 2}, NETWORKS, SPEC)
        metric.use(TOKENIZER, generator("masked"))
        assert next(iter(measured(metric, heldout(pictures(6))))) == "bits_per_token_bound"

    def test_without_a_generator_there_is_nothing_and_latents_have_no_tokens(self) -> None:
        metric = registry.build(Metric, {"type": "bits_per_token"}, NETWORKS, SPEC)
        metric.use(TOKENIZER, None)
        assert measured(metric, heldout(pictures(6))) == {}
        from components.interfaces import Generator

        flow = registry.build(
            Generator,
            {"type": "next_x", "backbone": {"type": "modulated_transformer", "depth": 1, "width": 32, "heads": 2}},
            LatentSpec(4, 4, (2, 2)),
            3,
        )
        with pytest.raises(ComponentError, match="NextX gives no likelihood of tokens"):
            metric.use(TOKENIZER, flow)


class TestLinearProbe:
    def test_the_classifier_is_that_of_scikit_learn(self) -> None:
        from sklearn.linear_model import LogisticRegression

        rng = torch.Generator().manual_seed(0)
        rows, labels = torch.randn(200, 5, generator=rng, dtype=torch.float64), torch.randint(4, (200,), generator=rng)
        rows[:, 0] += labels
        weight, bias = logistic(rows, labels, 4, 0.01)
        theirs = LogisticRegression(C=1 / (0.01 * 200), tol=1e-10, max_iter=2000).fit(rows.numpy(), labels.numpy())
        ours = (rows @ weight + bias).softmax(1).numpy()
        assert ours == pytest.approx(theirs.predict_proba(rows.numpy()), abs=1e-4)

    def test_separable_codes_are_read_and_chance_is_not_beaten(self) -> None:
        rng = torch.Generator().manual_seed(0)
        labels = torch.randint(3, (600,), generator=rng)
        tokens = torch.randint(32, (600, 4), generator=rng)
        blind = measured(
            build(NETWORKS, "linear_probe"),
            EvaluationBatch(tokens=tokens, heldout_labels=labels, numbers=torch.arange(600)),
        )
        assert blind["linear_probe"] == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / 300))
        tokens[:, 2] = labels * 5  # one position tells
        telling = measured(
            build(NETWORKS, "linear_probe"),
            EvaluationBatch(tokens=tokens, heldout_labels=labels, numbers=torch.arange(600)),
        )
        assert telling["linear_probe"] == 1.0
        assert telling["linear_probe.majority"] < 0.45

    def test_the_interval_is_wilsons_of_the_test_half(self) -> None:
        batch = heldout(pictures(90))
        values = measured(build(NETWORKS, "linear_probe"), batch)
        expected = binomtest(round(values["linear_probe"] * 45), 45).proportion_ci(method="wilson")
        assert (values["linear_probe.low"], values["linear_probe.high"]) == pytest.approx(tuple(expected), abs=1e-4)

    def test_pools_keep_what_fits(self) -> None:
        latents = torch.arange(2 * 12 * 3.0).view(2, 12, 3)
        assert torch.equal(pooled(latents, (3, 4), 36).view(2, 3, 12).transpose(1, 2), latents)
        square = latents.transpose(1, 2).view(2, 3, 3, 4)
        assert torch.equal(pooled(latents, (3, 4), 18), F.adaptive_avg_pool2d(square, (3, 2)).flatten(1))
        assert torch.allclose(pooled(latents, None, 3), latents.mean(1))

    def test_a_tokenizer_without_quantizer_is_refused(self) -> None:
        metric = registry.build(Metric, {"type": "linear_probe"}, NETWORKS, SPEC)
        without = Patches()
        del without.quantizer
        with pytest.raises(ComponentError, match="Patches has no quantizer"):
            metric.use(without, None)
