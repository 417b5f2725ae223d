"""CLIMB: what the paper's mechanism must do exactly, on small synthetic problems, and every Mixture's contract."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import registry
from components.interfaces import Mixture, MixtureData, MixtureResult, Silent
from components.mixture import clusters as clustering
from components.mixture import samples
from components.mixture.clustered import Setup, split
from components.mixture.clusters import Clustering, Clusters
from components.mixture.dirichlet import Dirichlet, key
from components.mixture.embedders.gradients import Gradients
from components.mixture.predictor import Predictor
from components.mixture.problem import Objective
from components.mixture.proxies._counts import count
from components.mixture.proxies.visual_words import Words
from components.mixture.search import Found, Search
from components.mixture.store import Run, Store, Train

SHARES = np.array([0.4, 0.3, 0.2, 0.1])
GOAL = np.array([0.1, 0.1, 0.1, 0.7])
ROUNDS = (64, 32, 16)


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def nearness(alpha: np.ndarray, seed: int) -> float:
    return -float(((alpha - GOAL) ** 2).sum())


class Counting(Predictor):
    """Notes on how many rows it was fitted."""

    rows: list[int] = []  # noqa: RUF012

    def fit(self, alphas: np.ndarray, scores: np.ndarray, seed: int) -> Any:
        self.rows.append(len(alphas))
        return super().fit(alphas, scores, seed)


def search(folder: Path, seed: int = 0, score: Callable[[np.ndarray, int], float] = nearness) -> Search:
    return Search(score, SHARES, Store(folder, "test"), seed, in_turn, Silent())


def iterate(search: Search, rounds: Sequence[int] = ROUNDS, predictor: Predictor | None = None) -> Found:
    return search.iterate(rounds, Dirichlet(), predictor or Predictor(), 2_000, None)


# ------------------------------------------------------------------------------------------------ clusters


def blobs(n: int = 600) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 5))[rng.integers(0, 12, n)] * 3 + rng.normal(size=(n, 5))


def test_every_surviving_sample_is_in_exactly_one_cluster_and_counts_add_up() -> None:
    vectors = blobs()
    labels, _ = clustering.fine(vectors, 40, seed=0)
    scores = vectors[:, 0]
    keep = clustering.surviving(labels, [(scores, 0.0)])
    assert 0 < keep.sum() < len(keep)
    for k in range(len(keep)):
        assert keep[k] == (scores[labels == k].mean() >= 0.0)
    merged = Clustering(fine=40, most=6).fit(vectors, [(scores, 0.0)], seed=0)
    assert np.array_equal(merged.of_sample >= 0, keep[labels])
    assert merged.sizes.sum() == keep[labels].sum()
    assert np.array_equal(merged.sizes, [(merged.of_sample == k).sum() for k in range(6)])
    assert np.all(np.diff(merged.sizes) <= 0)
    for k in range(len(keep)):  # fine clusters move as wholes
        assert len(np.unique(merged.of_sample[labels == k])) == 1


@pytest.mark.parametrize(("distance", "most"), [(4.0, None), (9.0, None), (1.5, 5)])
def test_merging_equals_scipy(distance: float, most: int | None) -> None:
    from scipy.cluster.hierarchy import fcluster, linkage

    vectors = blobs()
    labels, centroids = clustering.fine(vectors, 40, seed=0)
    assert np.allclose(centroids, [vectors[labels == k].mean(axis=0) for k in range(len(centroids))])
    tree = linkage(centroids, method="ward", metric="euclidean")
    expected = fcluster(tree, most or distance, "maxclust" if most else "distance")
    merged = Clustering(fine=40, distance=distance, most=most).fit(vectors, [], seed=0)
    assert len(merged.sizes) == expected.max()
    pairs = set(zip(expected[labels].tolist(), merged.of_sample.tolist(), strict=True))
    assert len(pairs) == expected.max()  # the same partition under other numbers


def test_mistakes_about_clusters_are_explained() -> None:
    with pytest.raises(ValueError, match=r"mixture\.clustering\.fine: 1000 clusters asked for.*only 600 samples"):
        Clustering().fit(blobs(), [], seed=0)
    with pytest.raises(ValueError, match=r"mixture\.prune: no cluster passes"):
        Clustering(fine=10).fit(blobs(), [(np.zeros(600), 1.0)], seed=0)


def test_the_draws_follow_alpha() -> None:
    clusters = Clusters.of(np.repeat([0, 1, 2, -1, 3], [50, 30, 15, 40, 5]))
    alpha = np.array([0.1, 0.2, 0.3, 0.4])
    weights = clusters.sample_weights(alpha)
    assert weights.sum() == pytest.approx(1)
    assert np.all(weights[clusters.of_sample < 0] == 0)
    n = 100_000
    drawn = clusters.of_sample[np.random.default_rng(0).choice(len(weights), n, p=weights)]
    shares = np.bincount(drawn, minlength=4) / n
    assert np.all(np.abs(shares - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / n))


# ------------------------------------------------------------------------------------------------ sampler


def test_mixtures_are_lawful_and_different() -> None:
    sampler = Dirichlet(cap=2.5)
    alphas = sampler.draw(SHARES, 3000, np.random.default_rng(0))
    assert np.allclose(alphas.sum(axis=1), 1)
    assert np.all(alphas <= 2.5 * SHARES)
    assert np.all((alphas == 0) | (alphas >= sampler.minimum))
    assert (alphas == 0).any()
    assert len({key(a) for a in alphas}) == 3000
    again = sampler.draw(SHARES, 100, np.random.default_rng(0), {key(a) for a in alphas[:50]})
    assert np.array_equal(again, alphas[50:150])
    assert np.array_equal(sampler.draw(SHARES, 64, np.random.default_rng(0)), alphas[:64])


def test_the_sampler_is_centered_on_tempered_shares() -> None:
    sampler = Dirichlet(minimum=0.0, weakest=5.0, strongest=5.0, strengths=1, cap=1e9)
    n = 100_000
    alphas = sampler.draw(SHARES, n, np.random.default_rng(0))
    prior = SHARES**0.5 / (SHARES**0.5).sum()
    error = np.sqrt(prior * (1 - prior) / 6 / n)  # variance of Dirichlet(5 * prior) is p (1 - p) / (5 + 1)
    assert np.all(np.abs(alphas.mean(axis=0) - prior) < 4 * error)


def test_tiny_concentrations_do_not_underflow() -> None:
    shares = np.array([1 - 1e-5, 1e-5])
    alphas = Dirichlet(weakest=1e-3, strongest=1e-2, cap=1e9).draw(shares, 5, np.random.default_rng(0))
    assert np.isfinite(alphas).all()


def test_a_sampler_that_finds_nothing_says_so() -> None:
    with pytest.raises(ValueError, match=r"mixture\.sampler: of \d+ mixtures only"):
        Dirichlet(cap=1.0).draw(SHARES, 4, np.random.default_rng(0))


def test_the_predictor_learns_scores_of_a_small_range() -> None:
    alphas = Dirichlet().draw(SHARES, 200, np.random.default_rng(0))
    scores = 5.0 + 1e-4 * alphas[:, 3]
    predict = Predictor().fit(alphas, scores, seed=0)
    assert np.corrcoef(predict(alphas), scores)[0, 1] > 0.9


# ------------------------------------------------------------------------------------------------ search


def test_rounds_train_64_32_16_and_refit_on_all(tmp_path: Path) -> None:
    counting = Counting()
    counting.rows.clear()
    found = iterate(search(tmp_path), predictor=counting)
    assert [sum(t.round == r for t in found.trials) for r in range(3)] == [64, 32, 16]
    assert found.fitted_on == counting.rows == [64, 96, 112]
    assert len({key(t.alpha) for t in found.trials}) == 112
    assert len({t.seed for t in found.trials}) == 112
    assert all(t.score == nearness(t.alpha, t.seed) for t in found.trials)
    assert [t.predicted is None for t in found.trials] == [True] * 64 + [False] * 48
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(r["seed"] for r in records) == [t.seed for t in found.trials]
    means = [np.mean([t.score for t in found.trials if t.round == r]) for r in range(3)]
    assert means[1] > means[0]
    assert nearness(found.alpha, 0) > nearness(SHARES, 0)


def test_later_picks_are_among_the_predicted_best(tmp_path: Path) -> None:
    found = iterate(search(tmp_path), (64, 8))
    first = found.trials[:64]
    predict = Predictor().fit(np.stack([t.alpha for t in first]), np.array([t.score for t in first]), 0)
    pool = Dirichlet().draw(SHARES, 2_000, np.random.default_rng((0, 1)), {key(t.alpha) for t in first})
    threshold = np.sort(predict(pool))[-128]
    assert all(t.predicted is not None and t.predicted >= threshold for t in found.trials[64:])


def test_a_fixed_seed_gives_identical_weights_and_another_does_not(tmp_path: Path) -> None:
    first, second, other = (iterate(search(tmp_path / f, s)) for f, s in (("a", 0), ("b", 0), ("c", 1)))
    assert np.array_equal(first.alpha, second.alpha)
    assert not np.array_equal(first.alpha, other.alpha)


@pytest.mark.parametrize("survived", [1, 70])
def test_a_killed_search_goes_on_where_it_stopped(tmp_path: Path, survived: int) -> None:
    calls = 0

    def dies(alpha: np.ndarray, seed: int) -> float:
        nonlocal calls
        calls += 1
        if calls == survived + 1:
            raise KeyboardInterrupt
        return nearness(alpha, seed)

    whole = iterate(search(tmp_path / "whole"))
    resumed = search(tmp_path / "killed", score=dies)
    with pytest.raises(KeyboardInterrupt):
        iterate(resumed)
    again = iterate(resumed)
    assert calls == 112 + 1  # nothing was trained twice
    assert np.array_equal(again.alpha, whole.alpha)
    assert [(t.score, t.seed, t.predicted) for t in again.trials] == [
        (t.score, t.seed, t.predicted) for t in whole.trials
    ]


def test_a_proxy_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    setup, data = Setup(clustering=Clustering(fine=20, most=4)), pictures()
    made = setup.build(data, setup.clusters(data, seed=0), seed=0)
    train = Train(made.problem.score, Store(tmp_path, made.name))
    alpha = np.full(4, 0.25)
    assert pickle.loads(pickle.dumps(train))((alpha, 0)) == made.problem.score(alpha, 0)


def test_a_store_never_answers_for_another_problem(tmp_path: Path) -> None:
    run: Run = (SHARES, 3)
    Store(tmp_path, "one").write(run, 0.1)
    assert Store(tmp_path, "one").read(run) == 0.1
    assert Store(tmp_path, "two").read(run) is None
    assert Store(tmp_path, "one").read((SHARES, 4)) is None


# ------------------------------------------------------------------------------------------------ components

SMALL: dict[str, Any] = {
    "clustering": {"fine": 20, "most": 4},
    "proxy": {"type": "visual_words", "words": 8, "budget": 2000, "final_budget": 10000},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "climb": {"rounds": [16, 8, 4], "candidates": 2000, "compare": False},
    "regmix": {"proxies": 28, "candidates": 2000},
    "random_search": {"proxies": 28},
    "uniform": {},
    "proportional": {},
    "manual": {"weights": {"d": 0.5, "a": 0.2}},
}


def pictures() -> MixtureData:
    """Four kinds of stripes and a few blank pictures as pool; the target is one of the kinds."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    kinds = [(x // 2) % 2, (y // 2) % 2, ((x + y) // 2) % 2, ((x // 4) + (y // 4)) % 2]

    def some(kind: int, n: int) -> np.ndarray:
        noise = rng.normal(0, 40, (n, 16, 16))
        rolled = np.stack([np.roll(kinds[kind], rng.integers(0, 4, 2), (0, 1)) for _ in range(n)])
        return (rolled * 160 + 40 + noise).clip(0, 255).astype(np.uint8)[:, None]

    blank = np.full((20, 1, 16, 16), 128, np.uint8)
    blank[:, 0, 0, 0] += np.arange(20, dtype=np.uint8)
    pool = np.concatenate([some(0, 60), some(1, 80), some(2, 60), some(3, 40), blank])
    labels = ["a"] * 60 + ["b"] * 80 + ["c"] * 60 + ["d"] * 40 + [None] * 20
    return MixtureData(pool, some(3, 60), labels, ["d"] * 60)


def fit(name: str, folder: Path, seed: int = 0, **changes: Any) -> MixtureResult:
    config = {"type": name, "problem": SMALL, **CONFIGS.get(name, {}), **changes}
    mixture = registry.build(Mixture, config)
    return mixture.fit(pictures(), seed=seed, workdir=folder, map=in_turn, monitor=Silent())


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names(Mixture))
def test_contract(name: str, tmp_path: Path) -> None:
    data = pictures()
    before = np.array(data.pool)
    result = fit(name, tmp_path / "one")
    assert result.sample_weights.shape == (len(data.pool),)
    assert result.sample_weights.dtype == np.float64
    assert np.all(result.sample_weights >= 0)
    assert result.sample_weights.sum() == pytest.approx(1)
    assert all(np.isfinite(v) for v in result.summary.values())
    json.dumps([result.summary, result.tables], allow_nan=False)
    assert all(png.startswith(b"\x89PNG") for png in result.figures.values())
    again = fit(name, tmp_path / "two")
    assert np.array_equal(again.sample_weights, result.sample_weights)
    assert again.figures == result.figures
    assert np.array_equal(data.pool, before)
    spec = registry.resolve(Mixture, {"type": name})
    assert registry.resolve(Mixture, json.loads(json.dumps(spec.dump()))).dump() == spec.dump()


def test_blank_pictures_are_pruned_and_the_target_is_found(tmp_path: Path) -> None:
    result = fit("climb", tmp_path, rounds=[32, 16, 8], compare=True)
    assert np.all(result.sample_weights[-20:] == 0)
    assert result.summary["pruned_samples"] == 20
    assert result.summary["weight_on_target_classes"] > 2 * result.summary["natural_share_of_target_classes"]
    for name in ("uniform", "natural", "random_mean"):
        assert result.summary["target_loss"] < result.summary[f"target_loss_{name}"]
    assert {row["mixture"] for row in result.tables["baselines"]} == {
        "found", "uniform", "natural", "random_mean", "best_of_n", "regmix",
    }  # fmt: skip
    assert {"round", "score", "seed", "weights"} <= set(result.tables["history"][0])


@pytest.mark.slow
def test_one_round_is_regmix(tmp_path: Path) -> None:
    climb = fit("climb", tmp_path / "climb", rounds=[28])
    regmix = fit("regmix", tmp_path / "regmix")
    assert np.array_equal(climb.sample_weights, regmix.sample_weights)
    assert climb.tables["history"] == regmix.tables["history"]


def test_uniform_and_proportional(tmp_path: Path) -> None:
    weights = fit("proportional", tmp_path).sample_weights
    assert np.allclose(weights[:-20], 1 / 240)
    uniform = fit("uniform", tmp_path)
    assert [row["weight"] for row in uniform.tables["clusters"]] == [0.25] * 4


def test_manual_weights_are_by_label_and_the_others_share_the_rest(tmp_path: Path) -> None:
    result = fit("manual", tmp_path)
    labels = np.array([label or "" for label in pictures().pool_labels])
    shares = {name: result.sample_weights[labels == name].sum() for name in ("a", "b", "c", "d", "")}
    assert shares == pytest.approx({"d": 0.5, "a": 0.2, "b": 0.3 * 80 / 160, "c": 0.3 * 60 / 160, "": 0.3 * 20 / 160})
    assert len(set(result.sample_weights[labels == "a"])) == 1
    assert {row["cluster"]: row["weight"] for row in result.tables["clusters"]}["(no label)"] == pytest.approx(0.0375)
    assert result.summary["target_loss"] < result.summary["target_loss_uniform"]
    natural = fit("manual", tmp_path, weights={})
    assert np.allclose(natural.sample_weights, 1 / 260)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"d": 0.9, "a": 0.2}, "sum of at most 1"),
        ({"d": -0.1}, "shares from 0 to 1"),
        ({"e": 0.1}, r"no sample of the pool has the label 'e'.*\(there are: \(no label\), a, b, c, d\)"),
        ({"a": 0.1, "b": 0.1, "c": 0.1, "d": 0.1, "(no label)": 0.1}, "sum is 0.5 and no label is left"),
    ],
)
def test_manual_weights_that_cannot_be_are_explained(tmp_path: Path, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=r"mixture\.weights: .*" + message):
        fit("manual", tmp_path, weights=weights)


def test_renaming_clusters_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit("climb", tmp_path / "plain")
    original = Clustering.fit

    def renamed(self: Clustering, *arguments: Any) -> Clusters:
        found = original(self, *arguments)
        return Clusters.of(found.of_sample, [f"zebra {9 - i}" for i in range(len(found.sizes))])

    monkeypatch.setattr(Clustering, "fit", renamed)
    other = fit("climb", tmp_path / "renamed")
    assert other.tables["clusters"][0]["cluster"].startswith("zebra")
    assert np.array_equal(other.sample_weights, plain.sample_weights)
    assert other.summary == plain.summary


def test_labels_choose_nothing(tmp_path: Path) -> None:
    mixture = registry.build(Mixture, {"type": "climb", "problem": SMALL, **CONFIGS["climb"]})
    data = pictures()
    hidden = MixtureData(data.pool, data.target, [None] * len(data.pool), [None] * len(data.target))
    results = [
        mixture.fit(d, seed=0, workdir=tmp_path / name, map=in_turn, monitor=Silent())
        for name, d in (("shown", data), ("hidden", hidden))
    ]
    assert np.array_equal(results[0].sample_weights, results[1].sample_weights)
    assert "weight_on_target_classes" not in results[1].summary


class Worst(Objective):
    """Minus the loss of the target sample that is served worst."""

    def score(self, losses: np.ndarray) -> float:
        return -float(losses.max())


def test_the_objective_is_pluggable(tmp_path: Path) -> None:
    worst = fit("uniform", tmp_path, problem={**SMALL, "objective": {"type": f"{__name__}:Worst"}})
    assert worst.summary["target_loss"] > fit("uniform", tmp_path).summary["target_loss"]


def test_the_target_is_split_without_overlap() -> None:
    target = pictures().target
    twice = samples.of(np.concatenate([target, target]))
    search_part, test_part = split(twice, 0.5, seed=0)
    assert len(search_part) == len(test_part) == 60
    assert not {twice.content(i) for i in search_part} & {twice.content(i) for i in test_part}
    assert sorted([*search_part, *test_part]) == list(range(120))
    with pytest.raises(ValueError, match=r"mixture\.problem\.test_share"):
        split(samples.of(target[:1]), 0.5, seed=0)


def test_embeddings_are_of_unit_length() -> None:
    images = pictures().pool
    assert isinstance(images, np.ndarray)
    vectors = Gradients(dimensions=12).fit_transform(images, seed=0)
    assert vectors.shape == (len(images), 12)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_the_proxy_is_a_distribution() -> None:
    """The interpolated n-gram sums to one over the next word: every order, seen or unseen context."""
    words, rng = 4, np.random.default_rng(0)
    pool = Words(rng.integers(0, words, (260, 4, 4)), words)
    alpha = np.array([0.2, 0.3, 0.5])
    start = rng.integers(0, words, (1, 4, 4))
    for place in range(16):
        probes = np.repeat(start, words, axis=0)
        probes.reshape(words, -1)[:, place] = np.arange(words)
        bits = count(pool, np.arange(260) % 3, Words(probes, words), 32.0).bits(alpha, 5000.0)
        assert (2.0 ** -bits.reshape(words, 16)[:, place]).sum() == pytest.approx(1)


def test_recipe_mistakes_are_refused() -> None:
    with pytest.raises(registry.ComponentError):
        registry.resolve(Mixture, {"type": "climb", "problem": {"clustering": {"finest": 3}}})
    with pytest.raises(registry.ComponentError, match="did you mean 'candidates'"):
        registry.resolve(Mixture, {"type": "climb", "candidate": 3})
    assert Setup().test_share == 0.5
