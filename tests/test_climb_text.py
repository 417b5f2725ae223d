"""CLIMB on texts: the same mechanism over another modality, and what is its own there - bytes, n-grams, proxies, reports."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components import registry
from components.interfaces import (
    Broken,
    Generator,
    Mixture,
    MixtureData,
    MixtureResult,
    Sample,
    Silent,
    Source,
    TokenSpec,
)
from components.mixture import clusters as clustering
from components.mixture import samples
from components.mixture.clustered import Setup
from components.mixture.clusters import Clustering, Clusters
from components.mixture.dirichlet import Dirichlet
from components.mixture.embedders.hashed_ngrams import HashedNgrams
from components.mixture.problem import Proxy, ProxyData
from components.mixture.proxies._counts import CountsTask, count
from components.mixture.proxies.byte_ngrams import ByteNgrams, Bytes
from components.mixture.proxies.small_transformer import Draws, Windows, evaluate
from components.mixture.scores.text_quality import quality

# ------------------------------------------------------------------------------------------------ data

TONGUES = {
    "a": "lorem ipsum dolor sit amet elit sed tempor magna aliqua enim minim veniam quis",
    "b": "kivi talo joki metsä järvi lintu yö päivä sininen vihreä tuuli sade",
    "c": "дом река лес поле ветер дождь снег утро вечер город дорога мост",
    "d": "while return import class def yield lambda except raise assert global pass",
}
CRUMBS = 20


def sentences(tongue: str, count: int, rng: np.random.Generator) -> list[str]:
    words = np.array(TONGUES[tongue].split())
    return [" ".join(rng.choice(words, rng.integers(45, 90))) for _ in range(count)]


def texts() -> MixtureData:
    """Four artificial tongues, one of them again with its letters shuffled, and crumbs that are no text; the target is `d`.

    Texts of `c` are longer in bytes than in letters."""
    rng = np.random.default_rng(0)
    pool, labels = [], []
    for tongue, count_ in (("a", 60), ("b", 80), ("c", 60), ("d", 40)):
        pool += sentences(tongue, count_, rng)
        labels += [tongue] * count_
    pool += ["".join(rng.permutation(list(text))) for text in sentences("d", 40, rng)]
    labels += ["decoy"] * 40
    pool += ["\n".join("|+|-=" for _ in range(20 + i)) for i in range(CRUMBS)]
    return MixtureData(pool, sentences("d", 60, rng), [*labels, *([None] * CRUMBS)], ["d"] * 60)


PROBLEM: dict[str, Any] = {
    "embedding": {"type": "hashed_ngrams", "dimensions": 12},
    "clustering": {"fine": 20, "most": 6},
    "prune": [{"type": "text_quality"}],
    "proxy": {"type": "byte_ngrams", "order": 3, "budget": 5000, "final_budget": 25_000},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "climb": {"rounds": [16, 8, 4], "candidates": 2000, "compare": False},
    "regmix": {"proxies": 28, "candidates": 2000},
    "random_search": {"proxies": 28},
    "manual": {"weights": {"d": 0.7}},
}


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def refuse(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    raise AssertionError("a proxy of milliseconds was sent elsewhere")


def fit(
    name: str, folder: Path, data: MixtureData | None = None, map: Any = refuse, seed: int = 0, **changes: Any
) -> MixtureResult:
    mixture = registry.build(Mixture, {"type": name, "problem": PROBLEM, **CONFIGS.get(name, {}), **changes})
    return mixture.fit(data or texts(), seed=seed, workdir=folder, map=map, monitor=Silent())


def lengths(pool: Any) -> np.ndarray:
    return np.array([len(text.encode()) for text in pool])


# ------------------------------------------------------------------------------------------------ clusters


def test_every_surviving_text_is_in_one_cluster_and_texts_and_bytes_add_up() -> None:
    data = texts()
    setup = registry.build(Mixture, {"type": "climb", "problem": PROBLEM}).problem  # type: ignore[attr-defined]
    found: Clusters = setup.clusters(data, seed=0)
    vectors = HashedNgrams(dimensions=12).fit_transform(data.pool, 0)  # type: ignore[arg-type]
    labels, centroids = clustering.fine(vectors, 20, seed=0)
    rates = np.array([quality(text) for text in data.pool])
    keep = np.array([rates[labels == k].mean() >= 0.5 for k in range(len(centroids))])
    assert 0 < keep.sum() < len(keep)
    assert np.array_equal(found.of_sample >= 0, keep[labels])
    assert not (found.of_sample[-CRUMBS - 40 :] >= 0).any()
    for k in range(len(centroids)):  # fine clusters move as wholes
        assert len(np.unique(found.of_sample[labels == k])) == 1
    assert found.sizes.sum() == keep[labels].sum()
    size = lengths(data.pool)
    assert found.amounts.sum() == size[keep[labels]].sum()
    assert found.amounts.tolist() == [size[found.of_sample == k].sum() for k in range(len(found.sizes))]


def test_merging_texts_equals_scipy() -> None:
    from scipy.cluster.hierarchy import fcluster, linkage

    vectors = HashedNgrams(dimensions=12).fit_transform(texts().pool, 0)  # type: ignore[arg-type]
    labels, centroids = clustering.fine(vectors, 20, seed=0)
    tree = linkage(centroids, method="ward", metric="euclidean")
    for distance in (0.5, 1.5):
        expected = fcluster(tree, distance, "distance")
        merged = Clustering(fine=20, distance=distance, most=None).fit(vectors, [], seed=0)
        pairs = set(zip(expected[labels].tolist(), merged.of_sample.tolist(), strict=True))
        assert len(pairs) == expected.max() == len(merged.sizes)


def test_a_weight_is_a_share_of_the_bytes_that_are_drawn() -> None:
    data = texts()
    size = lengths(data.pool)
    of_sample = np.repeat([0, 1, 2, 3, 4, -1], [60, 80, 60, 40, 40, CRUMBS])
    clusters = Clusters.of(of_sample, amounts=size)
    assert np.allclose(clusters.sample_weights(clusters.shares)[:-CRUMBS], 1 / 280)  # natural: every text alike
    alpha = np.array([0.1, 0.2, 0.4, 0.3, 0.0])
    weights = clusters.sample_weights(alpha)
    assert weights.sum() == pytest.approx(1)
    drawn = np.random.default_rng(0).choice(len(weights), 100_000, p=weights)
    total = size[drawn].sum()
    for k in range(5):
        shares = size[drawn] * (of_sample[drawn] == k)
        # a ratio of sums: its standard error by the delta method
        error = np.sqrt(((shares - alpha[k] * size[drawn]) ** 2).sum()) / total
        assert abs(shares.sum() / total - alpha[k]) <= 4 * error


def test_embeddings_of_texts_are_of_unit_length_and_repeat() -> None:
    pool = texts().pool
    assert isinstance(pool, list)
    vectors = HashedNgrams(dimensions=12).fit_transform(pool, 0)
    assert vectors.shape == (len(pool), 12)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert np.array_equal(vectors, HashedNgrams(dimensions=12).fit_transform(pool, 0))
    assert HashedNgrams().fit_transform(pool[:5], 0).shape == (5, 5)
    same = HashedNgrams(dimensions=2, characters=16).fit_transform(["x" * 16 + "one", "x" * 16 + "two", "other"], 0)
    assert np.allclose(same[0], same[1])  # what follows is not read


# ------------------------------------------------------------------------------------------------ n-grams


def test_the_byte_model_is_a_distribution() -> None:
    """It sums to one over the next byte: every order, seen or unseen context."""
    data = texts()
    pool, alpha = Bytes(list(data.pool), 4), np.array([0.2, 0.3, 0.5])
    of_sample = np.arange(len(data.pool)) % 3
    for before in ("", "r", "return", "дом", "zzzz"):
        target = Bytes([before], 4)
        size = len(before.encode())
        probes = Bytes([""] * 256, 4)  # the same text with every byte after it
        probes.words = np.concatenate([np.append(target.words, byte) for byte in range(256)])
        probes.lengths = np.full(256, size + 1)
        probes._places = np.arange(len(probes.words)) + 4 * np.repeat(np.arange(1, 257), size + 1)
        probes._padded = np.zeros(len(probes.words) + 4 * 256, int)
        probes._padded[probes._places] = probes.words + 1
        bits = count(pool, of_sample, probes, 8.0).bits(alpha, 3000.0)
        assert (2.0 ** -bits.reshape(256, -1)[:, -1]).sum() == pytest.approx(1)


def test_the_byte_model_equals_counting_by_hand() -> None:
    """Alpha-weighted counts at a fixed budget, interpolated from coarse to fine, against dictionaries and loops."""
    pool = ["abracadabra", "\0banana", "bandana", "дом"]
    target = ["abra", "nada", "д", "\0bnb"]  # a text that begins is another context than a zero byte
    of_sample, alpha = np.array([0, 1, 1, -1]), np.array([0.25, 0.75])
    orders, budget, smoothing = 3, 100.0, 2.0
    seen: dict[tuple[int, bytes], float] = defaultdict(float)
    for k in range(2):
        mine = [text.encode() for text, cluster in zip(pool, of_sample, strict=True) if cluster == k]
        share = budget * alpha[k] / sum(map(len, mine))
        for data in mine:
            for place in range(len(data)):
                for order in range(orders):
                    context = b"^" * max(0, order - place) + data[max(0, place - order) : place]
                    seen[order, context] += share
                    seen[order, context + data[place : place + 1]] += share
    expected = []
    for text in target:
        data, bits = text.encode(), 0.0
        for place in range(len(data)):
            p = 1 / 256
            for order in range(orders):
                context = b"^" * max(0, order - place) + data[max(0, place - order) : place]
                joint = seen.get((order, context + data[place : place + 1]), 0.0) if context or order == 0 else 0.0
                p = (joint + smoothing * p) / (seen.get((order, context), 0.0) + smoothing)
            bits -= np.log2(p)
        expected.append(bits / len(data))
    counted = count(Bytes(pool, orders), of_sample, Bytes(target, orders), smoothing)
    assert np.allclose(counted.losses(alpha, budget), expected)


def test_natural_shares_at_the_pools_own_size_are_plain_counting() -> None:
    data = texts()
    pool, target = Bytes(list(data.pool), 5), Bytes(list(data.target), 5)
    of_sample = np.repeat([0, 1, 2], [100, 100, 100])
    three = Clusters.of(of_sample, amounts=lengths(data.pool))
    parts = count(pool, of_sample, target, 8.0).losses(three.shares, float(len(pool.words)))
    whole = count(pool, np.zeros(300, int), target, 8.0).losses(np.ones(1), float(len(pool.words)))
    assert np.allclose(parts, whole)
    assert len(target.words) > len(count(pool, of_sample, target, 8.0).events[0][0]), "equal events are kept once"


def test_more_budget_of_the_right_text_is_better() -> None:
    data = texts()
    of_sample = np.repeat([0, 1, 2, 3, 4], [60, 80, 60, 40, 60])
    proxy = ByteNgrams(budget=2000, final_budget=20_000)
    clusters = Clusters.of(of_sample, amounts=lengths(data.pool))
    task = proxy.prepare(ProxyData(list(data.pool), clusters, list(data.target)[:30], list(data.target)[:30]), 0)
    right, wrong = np.eye(5)[3], np.eye(5)[0]
    assert task.search_losses(right, 0).mean() < task.search_losses(wrong, 0).mean()
    assert task.test_losses(right, 0).mean() < task.search_losses(right, 0).mean()
    assert np.array_equal(task.search_losses(right, 0), task.search_losses(right, 1))  # no noise of its own


# ------------------------------------------------------------------------------------------------ search


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names(Mixture))
def test_contract_on_texts(name: str, tmp_path: Path) -> None:
    data = texts()
    before = list(data.pool)
    result = fit(name, tmp_path / "one")
    assert result.sample_weights.shape == (len(data.pool),)
    assert np.all(result.sample_weights >= 0) and result.sample_weights.sum() == pytest.approx(1)
    assert all(np.isfinite(value) for value in result.summary.values())
    json.dumps([result.summary, result.tables], allow_nan=False)
    assert {"clusters", "search", "baselines"} >= set(result.figures) >= {"clusters"}
    assert all(png.startswith(b"\x89PNG") for png in result.figures.values())
    again = fit(name, tmp_path / "two")
    assert np.array_equal(again.sample_weights, result.sample_weights)
    assert (again.figures, again.tables, again.summary) == (result.figures, result.tables, result.summary)
    assert list(data.pool) == before


def shares_of(result: MixtureResult, data: MixtureData) -> dict[str, float]:
    """label -> its share of the bytes that are drawn."""
    labels = np.array([label or "" for label in data.pool_labels])
    drawn = result.sample_weights * lengths(data.pool)
    return {name: drawn[labels == name].sum() / drawn.sum() for name in set(labels)}


def test_the_target_is_found_and_what_is_no_text_is_pruned(tmp_path: Path) -> None:
    data = texts()
    result = fit("climb", tmp_path, rounds=[32, 16, 8], compare=True)
    share = shares_of(result, data)
    assert share[""] == share["decoy"] == 0 and result.summary["pruned_samples"] == CRUMBS + 40
    assert share["d"] > 3 * result.summary["natural_share_of_target_classes"]
    for name in ("uniform", "natural", "random_mean"):
        assert result.summary["target_loss"] < result.summary[f"target_loss_{name}"]
    assert {row["mixture"] for row in result.tables["baselines"]} == {
        "found", "uniform", "natural", "random_mean", "best_of_n", "regmix",
    }  # fmt: skip
    assert set(result.figures) == {"clusters", "search", "baselines"}


@pytest.mark.slow
def test_without_pruning_the_search_itself_turns_from_the_decoy(tmp_path: Path) -> None:
    data = texts()
    result = fit("climb", tmp_path, rounds=[64, 32, 16], problem={**PROBLEM, "prune": []})
    share, natural = (
        shares_of(result, data),
        shares_of(fit("proportional", tmp_path, problem=PROBLEM | {"prune": []}), data),
    )
    assert result.summary["pruned_samples"] == 0
    assert share["decoy"] < natural["decoy"] / 2 and share["d"] > 3 * natural["d"]


def test_rounds_and_mixtures_are_the_papers(tmp_path: Path) -> None:
    result = fit("climb", tmp_path, rounds=[64, 32, 16])
    history = result.tables["history"]
    assert Counter(row["round"] for row in history) == {1: 64, 2: 32, 3: 16}
    assert [row["rows"] for row in result.tables["predictor_fits"]] == [64, 96, 112]
    alphas = np.array([list(row["weights"].values()) for row in history])
    assert len(np.unique(alphas, axis=0)) == 112
    assert np.allclose(alphas.sum(axis=1), 1)
    assert np.all((alphas == 0) | (alphas >= Dirichlet().minimum))
    shares = {row["cluster"]: row["share"] for row in result.tables["clusters"]}
    cap = np.array([Dirichlet().cap * shares[name] for name in history[0]["weights"]])
    assert np.all(alphas <= cap)


@pytest.mark.slow
def test_one_round_on_texts_is_regmix(tmp_path: Path) -> None:
    climb, regmix = fit("climb", tmp_path / "climb", rounds=[28]), fit("regmix", tmp_path / "regmix")
    assert np.array_equal(climb.sample_weights, regmix.sample_weights)
    assert climb.tables["history"] == regmix.tables["history"]


@pytest.mark.slow
@pytest.mark.parametrize("survived", [5, 20])
def test_a_search_on_texts_that_was_killed_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    whole = fit("climb", tmp_path / "whole")
    original, calls = CountsTask.search_losses, 0

    def dies(self: CountsTask, alpha: np.ndarray, seed: int) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == survived + 1:
            raise KeyboardInterrupt
        return original(self, alpha, seed)

    monkeypatch.setattr(CountsTask, "search_losses", dies)
    with pytest.raises(KeyboardInterrupt):
        fit("climb", tmp_path / "killed")
    again = fit("climb", tmp_path / "killed")
    assert calls == 28 + 1  # nothing was trained twice
    assert np.array_equal(again.sample_weights, whole.sample_weights)
    assert again.tables == whole.tables


def test_another_target_pool_or_proxy_never_meets_old_scores(tmp_path: Path) -> None:
    data = texts()
    setup: Setup = registry.build(Mixture, {"type": "climb", "problem": PROBLEM}).problem  # type: ignore[attr-defined]
    clusters = setup.clusters(data, 0)
    pool, target = list(data.pool), list(data.target)
    changed = [
        MixtureData([pool[1], pool[0], *pool[2:]], target, data.pool_labels, data.target_labels),
        MixtureData(pool, [*target[1:], "another one"], data.pool_labels, data.target_labels),
    ]
    made = [setup.build(each, clusters, 0) for each in (data, *changed)] + [setup.build(data, clusters, 1)]
    assert len({each.name for each in made}) == len({each.final_name for each in made}) == 4
    hidden = MixtureData(pool, target, [None] * len(pool), [None] * len(target))
    assert setup.build(hidden, clusters, 0).name == made[0].name


@pytest.mark.slow
def test_names_and_labels_change_nothing_on_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = texts()
    plain = fit("climb", tmp_path / "plain")
    hidden = MixtureData(data.pool, data.target, [None] * len(data.pool), [None] * len(data.target))
    assert np.array_equal(fit("climb", tmp_path / "hidden", hidden).sample_weights, plain.sample_weights)
    original = Clustering.fit

    def renamed(self: Clustering, *arguments: Any) -> Clusters:
        found = original(self, *arguments)
        names = [f"zebra {9 - i}" for i in range(len(found.sizes))]
        return Clusters.of(found.of_sample, names, lengths(data.pool))

    monkeypatch.setattr(Clustering, "fit", renamed)
    other = fit("climb", tmp_path / "renamed")
    assert other.tables["clusters"][0]["cluster"].startswith("zebra")
    assert np.array_equal(other.sample_weights, plain.sample_weights)
    assert other.summary == plain.summary


def test_other_modalities_parts_are_refused_with_those_that_fit(tmp_path: Path) -> None:
    for key, part, fits in (
        ("embedding", {"type": "gradients"}, "hashed_ngrams"),
        ("proxy", {"type": "visual_words"}, "byte_ngrams, small_transformer"),
        ("prune", [{"type": "text_quality"}, {"type": "contrast"}], "text_quality"),
    ):
        where = "prune.1" if key == "prune" else key
        with pytest.raises(ValueError, match=rf"mixture\.problem\.{where}: .* holds text; .*\({fits}\)"):
            fit("uniform", tmp_path, problem={**PROBLEM, key: part})


# ------------------------------------------------------------------------------------------------ report


def test_the_table_of_clusters_shows_texts_and_counts_labels(tmp_path: Path) -> None:
    data = texts()
    rows = fit("uniform", tmp_path).tables["clusters"]
    beginnings = {" ".join(text[:240].split())[:60] for text in data.pool}
    counted: Counter[str] = Counter()
    for row in rows:
        snippets = row["examples"].split(" | ")
        assert snippets and set(snippets) <= beginnings
        for entry in row["labels"].split():
            name, _, number = entry.partition(":")
            counted[name] += int(number)
    assert counted == {"a": 60, "b": 80, "c": 60, "d": 40}
    assert sum(row["bytes"] for row in rows) == lengths(data.pool)[: -CRUMBS - 40].sum()
    assert [row["share"] for row in rows] == pytest.approx(
        [row["bytes"] / sum(r["bytes"] for r in rows) for row in rows]
    )


@pytest.mark.parametrize(
    "text", ["日本語の文書です", "costs $\\frac$ and $x_1$ or _", "tab\tand \x07 bell", "ok\n\nthen"]
)
def test_a_figure_takes_any_text(text: str) -> None:
    """Letters that the font has not, what looks like a formula, control characters."""
    from components.mixture import figures

    pool = samples.of([text])
    row = {"cluster": "c00", "index": 0, "weight": 1.0, "share": 1.0, "target_share": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = figures.clusters([row], np.zeros(1, int), pool, pool, 0)
    assert png.startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------------ quality


def test_quality_tells_text_from_what_is_none() -> None:
    from pydoc_data.topics import topics

    prose = topics["assignment"][:1500]
    source = Path(clustering.__file__).read_text()[:1500]
    for good in (prose, source, "Пример обычного текста на русском языке, ничего особенного в нём нет.",
                 "これは日本語の普通の文章です。特別なことは何もありません。", "हिन्दी में एक साधारण वाक्य यहाँ लिखा है।"):  # fmt: skip
        assert quality(good) > 0.7, good
    table = "+-----+------+\n| 1 | 2 |\n" * 20
    shuffled = "".join(np.random.default_rng(1).permutation(list(prose)))
    for bad in (
        "",
        " \n\t",
        "=" * 500,
        table,
        "one line again\n" * 60,
        "\n".join("abcdefghijklmno"),
        "ab" * 800,
        shuffled,
        base64.b64encode(np.random.default_rng(0).bytes(1000)).decode(),
    ):
        assert quality(bad) < 0.3, bad
    words = prose.split()
    assert quality(" ".join(np.random.default_rng(0).permutation(words))) > 0.7  # as its docstring says


# ------------------------------------------------------------------------------------------------ transformer

DECODER = {
    "type": "next_token",
    "backbone": {"type": "transformer", "depth": 1, "width": 32, "heads": 2},
    "head": {"type": "categorical"},
    "condition_dropout": 0.0,
}
SMALL: dict[str, Any] = {
    "type": "small_transformer", "generator": DECODER, "length": 32, "final_steps": 60,
    "train": {"steps": 30, "batch_size": 8, "lr": 1e-2, "warmup": 5},
}  # fmt: skip


def test_windows_hold_every_byte_once() -> None:
    windows = Windows.of(["abcdefg", "", "größer", "xyz"], 3)
    assert windows.of_text.tolist() == [0, 0, 0, 2, 2, 2, 3]
    assert b"".join(bytes(row[inside]) for row, inside in zip(windows.tokens, windows.inside, strict=True)) == (
        "abcdefggrößerxyz".encode()
    )


def test_training_windows_are_drawn_by_the_mixture() -> None:
    streams = [np.full(size, value, np.uint8) for size, value in ((7, 1), (500, 2), (90, 3))]
    alpha = np.array([0.2, 0.5, 0.3])
    draws = Draws(streams, alpha, length=10, batch_size=1000, seed=3)
    n = 100_000
    tokens = np.concatenate([draws.batch(step)["tokens"].numpy() for step in range(n // 1000)])
    assert tokens.shape == (n, 10)
    shares = np.array([(tokens[:, 0] == value).mean() for value in (1, 2, 3)])
    assert np.all(np.abs(shares - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / n))
    assert np.array_equal(draws.batch(4)["tokens"], draws.batch(4)["tokens"])
    assert not np.array_equal(draws.batch(4)["tokens"], draws.batch(5)["tokens"])
    line = np.arange(20, dtype=np.uint8)
    for row in Draws([line], np.ones(1), 6, 50, 0).batch(0)["tokens"].numpy():
        assert np.array_equal(row, (row[0] + np.arange(6)) % 20)  # a piece of the stream, around its end


@pytest.mark.slow
def test_a_decoder_learns_the_mixture_it_is_trained_on() -> None:
    import torch

    data = texts()
    of_sample = np.repeat([0, 1, 2, 3, 4, -1], [60, 80, 60, 40, 40, CRUMBS])
    clusters = Clusters.of(of_sample, amounts=lengths(data.pool))
    target = list(data.target)
    proxy = registry.build(Proxy, SMALL)
    task = proxy.prepare(ProxyData(list(data.pool), clusters, target[:10], target[10:20]), 0)
    right, wrong = np.eye(5)[3], np.eye(5)[2]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    losses = task.search_losses(right, 1)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are its own"
    assert losses.shape == (10,)
    assert losses.mean() < 4.5 < 8.0 < task.search_losses(wrong, 1).mean()
    assert task.test_losses(right, 1).mean() < losses.mean()
    assert np.array_equal(task.search_losses(right, 1), losses)
    assert np.array_equal(pickle.loads(pickle.dumps(task)).search_losses(right, 1), losses)
    assert not np.array_equal(task.search_losses(right, 2), losses)


def test_the_loss_of_a_decoder_is_in_bits_per_byte() -> None:
    """One that knows nothing needs eight bits for every byte, whatever the lengths."""
    import torch

    model = registry.build(Generator, DECODER, TokenSpec((256,), 16, "sequence"), 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head."):
                parameter.zero_()
    assert np.allclose(evaluate(model, Windows.of(["a", "b" * 16, "", "größer" * 9], 16)), [8, 8, 0, 8])


@pytest.mark.slow
def test_heavy_proxies_go_through_the_map_and_give_the_same_anywhere(tmp_path: Path) -> None:
    sent: list[int] = []

    def elsewhere(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """As a worker would have it: pickled, in any order."""
        sent.append(len(items))
        copy = pickle.dumps(function)
        found = {i: pickle.loads(copy)(items[i]) for i in reversed(range(len(items)))}
        return [found[i] for i in range(len(items))]

    problem = {**PROBLEM, "proxy": {**SMALL, "final_steps": 4, "train": {**SMALL["train"], "steps": 3}}}
    config: dict[str, Any] = {"rounds": [6, 3], "candidates": 200}
    here = fit("climb", tmp_path / "here", map=in_turn, problem=problem, **config)
    there = fit("climb", tmp_path / "there", map=elsewhere, problem=problem, **config)
    assert sent == [6, 3, 3]  # two rounds, then the final models of found, uniform, natural
    assert np.array_equal(here.sample_weights, there.sample_weights)
    assert here.tables == there.tables
    sent.clear()
    assert fit("climb", tmp_path / "there", map=elsewhere, problem=problem, **config).tables == here.tables
    assert sum(sent) == 0, "finished proxies and final models are read again"


ON_RAY = """
import json, sys
from pathlib import Path
import numpy as np
import ray
from infra import parallel
from tests.test_climb_text import fit
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
found = fit("climb", Path(sys.argv[1]), map=parallel.ordered, **json.loads(sys.argv[2]))
np.save(Path(sys.argv[1]) / "weights.npy", found.sample_weights)
Path(sys.argv[1], "tables.json").write_text(json.dumps(found.tables))
"""


@pytest.mark.slow
def test_small_transformers_are_trained_side_by_side_on_ray(tmp_path: Path) -> None:
    problem = {**PROBLEM, "proxy": {**SMALL, "final_steps": 4, "train": {**SMALL["train"], "steps": 3}}}
    config: dict[str, Any] = {"rounds": [6, 3], "candidates": 200, "problem": problem}
    here = fit("climb", tmp_path / "here", map=in_turn, **config)
    (tmp_path / "there").mkdir()
    (tmp_path / "token").write_text("0" * 64)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", ON_RAY, str(tmp_path / "there"), json.dumps(config)]
    root = Path(__file__).resolve().parent.parent
    subprocess.run(command, check=True, cwd=root, env=os.environ | own | {"PYTHONPATH": str(root)})
    assert np.array_equal(np.load(tmp_path / "there" / "weights.npy"), here.sample_weights)
    assert json.loads((tmp_path / "there" / "tables.json").read_text()) == json.loads(json.dumps(here.tables))


# ------------------------------------------------------------------------------------------------ several sources


def folders(tmp_path: Path) -> dict[str, Any]:
    """Texts of every tongue in a folder each; what is wanted is `d`."""
    data = texts()
    for number, (text, label) in enumerate(zip(data.pool, data.pool_labels, strict=True)):
        path = tmp_path / "texts" / (label or "crumbs") / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for number, text in enumerate(data.target):
        path = tmp_path / "wanted" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return {
        "type": "several",
        "sources": {name: {"type": "text_files", "path": str(tmp_path / "texts" / name)} for name in "abcd"}
        | {"decoy": {"type": "text_files", "path": str(tmp_path / "texts" / "d")}},
        "shuffled": ["decoy"],
    }


def test_several_sources_are_one_with_their_names_as_labels(tmp_path: Path) -> None:
    spec = folders(tmp_path)
    found = {sample.key: sample for sample in registry.build(Source, spec).samples() if isinstance(sample, Sample)}
    assert Counter(sample.label for sample in found.values()) == {"a": 60, "b": 80, "c": 60, "d": 40, "decoy": 40}
    assert [sample.label for sample in found.values()] == sorted(sample.label or "" for sample in found.values())
    plain, decoy = found["d/200.txt"].text, found["decoy/200.txt"].text
    assert plain and decoy and plain != decoy and sorted(plain) == sorted(decoy)
    assert plain == texts().pool[200]
    again = registry.build(Source, spec)
    part = again.parts()[-1]
    assert next(s.text for s in again.read(part) if isinstance(s, Sample)) == decoy
    own = {"type": "text_files", "path": str(tmp_path / "texts")}
    prefixed = registry.build(Source, {"type": "several", "sources": {"x": own, "y": own}, "labels": "prefix"})
    labels = Counter(sample.label for sample in prefixed.samples() if isinstance(sample, Sample))
    assert labels["x/d"] == labels["y/d"] == 40 and labels["x/crumbs"] == CRUMBS


def test_several_name_what_is_broken_by_its_source(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "good.txt").write_text("good")
    source = registry.build(
        Source, {"type": "several", "sources": {"mine": {"type": "text_files", "path": str(tmp_path)}}}
    )
    broken = [sample for sample in source.samples() if isinstance(sample, Broken)]
    assert [sample.key for sample in broken] == ["mine/bad.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {}}, "at least 1 item"),
        ({"shuffled": ["hepl"]}, "no source is called 'hepl', did you mean 'help'"),
        ({"shuffled": ["faces"]}, "'faces' yields none"),
        ({"sources": {"help": {"type": "pydoc_txt"}}}, "did you mean 'pydoc_text'"),
    ],
)
def test_mistakes_about_several_sources_are_explained(change: dict[str, Any], message: str) -> None:
    spec = {"type": "several", "sources": {"help": {"type": "pydoc_text"}, "faces": {"type": "faces"}}}
    with pytest.raises(registry.ComponentError, match=message):
        registry.build(Source, spec | change)
    assert registry.build(Source, spec).modalities == ("image", "text")


# ------------------------------------------------------------------------------------------------ the stage


@pytest.mark.slow
def test_the_stage_searches_a_mixture_of_texts(tmp_path: Path) -> None:
    from components.data.shards import load_texts
    from flows import dataset, mixture
    from flows.context import StageContext, StageFailed

    run = tmp_path / "run"
    recipe: dict[str, Any] = {
        "system": "climb", "seed": 0,
        "dataset": {
            "source": folders(tmp_path), "target": {"type": "text_files", "path": str(tmp_path / "wanted")},
            "image": None, "held_out": 0.1, "expectations": "texts", "max_broken": 0.05, "near_duplicates": None,
        },
        "mixture": {"type": "climb", "target_share": 0.25, "problem": PROBLEM, **CONFIGS["climb"]},
    }  # fmt: skip

    def context(stage: str, **changes: Any) -> StageContext:
        output, work = run / "outputs" / stage, run / "work" / stage
        output.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        return StageContext(run, stage, recipe | changes, output, work)

    dataset.body(context("dataset"))
    ctx = context("mixture")
    metrics = mixture.body(ctx)
    pool = load_texts(run / "outputs" / "dataset", "train")
    weights = np.load(ctx.output / "sample_weights.npy")
    assert weights.shape == (len(pool.texts),) and weights.sum() == pytest.approx(1)
    by_class = np.bincount(pool.labels, weights * lengths(pool.texts))
    about = json.loads((run / "outputs" / "dataset" / "dataset.json").read_text())
    share = dict(zip(about["classes"], by_class / by_class.sum(), strict=False))
    assert share["decoy"] == 0 and share["d"] > 0.4
    assert metrics["target_loss"] < metrics["target_loss_uniform"]
    rows = json.loads((ctx.output / "tables" / "clusters.json").read_text())
    assert all(row["examples"] and row["labels"] for row in rows)
    assert json.loads((ctx.output / "mixture.json").read_text())["target_share"] == 0.25
    wrong = {**recipe["mixture"], "problem": {**PROBLEM, "proxy": {"type": "visual_words"}}}
    with pytest.raises(
        StageFailed, match=r"recipe\.yaml: mixture\.problem\.proxy: 'visual_words' is for data of modality image"
    ):
        mixture.body(context("mixture", mixture=wrong))
