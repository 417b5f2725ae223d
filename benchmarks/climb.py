"""CLIMB on real text at the paper's budgets: does the search find the data that a target needs, and leave the decoy?

    python -m benchmarks.climb [--seeds 5] [--first 0]
    python -m benchmarks.climb --no-pruning        # only the search stands between the decoy and the answer
    python -m benchmarks.climb --transformers      # small decoders as proxies, side by side on Ray: a smoke test

Pool: pieces of Python's standard library, of English prose (the topics of `help()`), of manual pages in English, German,
French, Polish, Russian, Japanese and Spanish, and a decoy: pieces of all of these with their characters shuffled. Labels are
hidden. Target: German manual pages and Python from files that the pool has none of; half of it is for the search, half for
the final losses. A language that is not installed is left out with a note (Debian: manpages-de, manpages-fr, ...).

The settings are those of the catalogue's check: hashed n-grams and SVD 32, k-means 40, clusters pruned by their mean
`text_quality`, Ward to 10, 64 + 32 + 16 proxies, byte 5-grams, a final model with five times the budget. What the catalogue
leaves open was set on another draw (seed 1000), without a search: smoothing and budget of the 5-gram by the loss of natural
shares, the n-grams of the embedding by how well k-means finds the sources, the rules of `text_quality` by the kinds of text.
Without pruning the first judging run (seeds 0 to 4) left the decoy between 0.1% and 7.4%, over 2% on four of five seeds: some
shuffled text costs a 5-gram next to nothing, so the search cannot see it. The rule of order in `text_quality`, and pruning in
this benchmark, came after that run; seeds 5 to 9 had not been looked at before.
A seed is another choice of pieces, another split and another search. Losses are bits per byte, lower is better.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components import registry
from components.data.locations import SourceError
from components.data.sources.several import shuffle
from components.interfaces import Map, Mixture, MixtureData, MixtureResult, Sample, Silent, Source

PIECE = 1500  # characters
PIECES = 600  # of each kind in the pool
TARGET = 150  # pieces of each kind in the target
HELD_OUT = 0.2  # share of the documents that only the target is taken from
WANTED = ("german", "python")
DECOY = "decoy"
LANGUAGES = {
    "english": "en", "german": "de", "french": "fr", "polish": "pl", "russian": "ru", "japanese": "ja", "spanish": "es",
}  # fmt: skip
SOURCES: dict[str, dict[str, Any]] = {
    "python": {"type": "python_stdlib", "piece": PIECE},
    "prose": {"type": "pydoc_text", "piece": PIECE},
    **{
        name: {"type": "man_pages", "languages": [code], "limit": 300, "piece": PIECE}
        for name, code in LANGUAGES.items()
    },
}
MIXTURE: dict[str, Any] = {
    "type": "climb",
    "rounds": [64, 32, 16],
    "compare": True,
    "problem": {
        "embedding": {"type": "hashed_ngrams", "dimensions": 32},
        "clustering": {"fine": 40, "most": 10},
        "prune": [{"type": "text_quality"}],
        "proxy": {"type": "byte_ngrams", "order": 5, "budget": 1_000_000, "final_budget": 5_000_000, "smoothing": 8.0},
    },
}
SMOKE: dict[str, Any] = MIXTURE | {
    "rounds": [16, 8, 4],
    "compare": False,
    "problem": MIXTURE["problem"] | {"clustering": {"fine": 40, "most": 5}, "proxy": {"type": "small_transformer"}},
}

Corpus = Mapping[str, Sequence[Sample]]


def corpus() -> Corpus:
    """Every piece of every source that is installed."""
    found: dict[str, list[Sample]] = {}
    for name, config in SOURCES.items():
        try:
            samples = registry.build(Source, config).samples()
            found[name] = [sample for sample in samples if isinstance(sample, Sample)]
        except SourceError as error:
            print(f"left out: {name}: {error}")
    missing = set(WANTED) - set(found)
    if missing:
        raise SystemExit(f"the target needs {' and '.join(WANTED)}; {', '.join(sorted(missing))} is not installed")
    return found


def draw(pieces: Corpus, seed: int) -> MixtureData:
    """The pool and the target of a seed; documents are wholly in one of them."""
    rng = np.random.default_rng(seed)
    pool: list[tuple[str, str]] = []  # text, label
    target: list[tuple[str, str]] = []
    ours: list[list[Sample]] = []  # of each kind, what the target may not have
    for name, samples in pieces.items():
        held = np.array([_held_out(sample.key.partition("#")[0], seed) for sample in samples])
        own = rng.permutation(np.flatnonzero(~held))
        pool += [(samples[i].text or "", name) for i in own[:PIECES]]
        ours.append([samples[i] for i in own])
        if name in WANTED:
            chosen = rng.permutation(np.flatnonzero(held))[:TARGET]
            target += [(samples[i].text or "", name) for i in chosen]
    share = PIECES // len(ours)
    shuffled = [samples[i] for samples in ours for i in rng.permutation(len(samples))[:share]]
    pool += [(shuffle(sample.text or "", sample.key), DECOY) for sample in shuffled]
    texts, labels = zip(*pool, strict=True)
    wanted, wanted_labels = zip(*target, strict=True)
    return MixtureData(list(texts), list(wanted), labels, wanted_labels)


def _held_out(document: str, seed: int) -> bool:
    return hashlib.sha256(f"{seed} {document}".encode()).digest()[0] < 256 * HELD_OUT


def drawn(result: MixtureResult, data: MixtureData) -> dict[str, float]:
    """label -> its share of the bytes that the mixture draws."""
    amounts = result.sample_weights * np.array([len(text.encode()) for text in data.pool])
    labels = np.array(data.pool_labels, dtype=object)
    return {
        name: float(amounts[labels == name].sum() / amounts.sum()) for name in dict.fromkeys(data.pool_labels) if name
    }


def fit(config: Mapping[str, Any], data: MixtureData, seed: int, map: Map) -> MixtureResult:
    with tempfile.TemporaryDirectory() as folder:
        mixture = registry.build(Mixture, config)
        return mixture.fit(data, seed=seed, workdir=Path(folder), map=map, monitor=Silent())


def in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


# --------------------------------------------------------------------------------------------------------- report

ROWS = {
    "proxy_loss_round_1": "proxies, mean of round 1",
    "proxy_loss_round_2": "proxies, mean of round 2",
    "proxy_loss_round_3": "proxies, mean of round 3",
    "target_loss": "final: CLIMB",
    "target_loss_uniform": "final: uniform",
    "target_loss_natural": "final: natural shares",
    "target_loss_random_mean": "final: mean random mixture",
    "target_loss_best_of_n": "final: random search, best of 112",
    "target_loss_regmix": "final: one-round RegMix, 112 proxies",
    "wanted": "weight: German and Python",
    "decoy": "weight: decoy",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Gate:
    text: str
    values: list[float]
    holds: Callable[[float], bool]

    def line(self) -> str:
        verdict = "holds" if all(map(self.holds, self.values)) else "DOES NOT HOLD"
        return f"{self.text:<66} {verdict:<14}" + "".join(f"{value:>9.3f}" for value in self.values)


def gates(rows: Sequence[Mapping[str, float]]) -> list[Gate]:
    """What the check asks for."""

    def margin(worse: str, better: str) -> list[float]:
        return [row[worse] - row[better] for row in rows]

    behind = float(np.mean(margin("target_loss", "target_loss_best_of_n")))
    return [
        Gate("round 2 better than round 1 by 0.5, on every seed",
             margin("proxy_loss_round_1", "proxy_loss_round_2"), lambda x: x >= 0.5),
        Gate("better than the mean random mixture by 1.0, on every seed",
             margin("target_loss_random_mean", "target_loss"), lambda x: x >= 1.0),
        Gate("better than uniform, on every seed", margin("target_loss_uniform", "target_loss"), lambda x: x > 0),
        Gate("behind the best of 112 by at most 0.05, in the mean", [behind], lambda x: x <= 0.05),
        Gate("decoy's weight under 2%, on every seed", [row["decoy"] for row in rows], lambda x: x < 0.02),
    ]  # fmt: skip


def interval(values: Sequence[float]) -> str:
    """Mean and the half width of its 95% interval (Student's t)."""
    from scipy import stats

    mean = f"{np.mean(values):.3f}"
    if len(values) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean} ± {half:.3f}"


def judged(pieces: Corpus, seeds: Sequence[int], config: Mapping[str, Any]) -> None:
    rows: list[dict[str, float]] = []
    for seed in seeds:
        started = time.perf_counter()
        data = draw(pieces, seed)
        result = fit(config, data, seed, in_turn)
        shares = drawn(result, data)
        rows.append(
            result.summary
            | {"wanted": sum(shares[name] for name in WANTED), "decoy": shares[DECOY]}
            | {"seconds": time.perf_counter() - started}
        )
        losses = {name.removeprefix("target_loss_"): rows[-1][name] for name in ROWS if name.startswith("target_loss")}
        print(
            f"seed {seed}: pool {len(data.pool)} pieces, {result.summary['pruned_samples']:.0f} pruned, "
            f"{result.summary['clusters']:.0f} clusters; target {len(data.target)}\n  drawn: "
            + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
            + "\n  final: "
            + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
            flush=True,
        )
    heads = "".join(f"{'seed ' + str(seed):>9}" for seed in seeds)
    print(f"\n{'':<40}{heads}   mean, 95% interval")
    for name, text in ROWS.items():
        values = [row[name] for row in rows]
        print(f"{text:<40}" + "".join(f"{value:>9.3f}" for value in values) + f"   {interval(values)}")
    print()
    for gate in gates(rows):
        print(gate.line())


def smoke(pieces: Corpus) -> None:
    data = draw(pieces, 0)
    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder, "ray_token")  # Ray would put one into the home of whoever runs this
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        import ray  # only now: it reads these when it is imported

        from infra import parallel

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            started = time.perf_counter()
            result = fit(SMOKE, data, 0, parallel.ordered)
            seconds = time.perf_counter() - started
        finally:
            ray.shutdown()
    shares = drawn(result, data)
    print(f"{result.summary['proxies']:.0f} small transformers and 3 final ones as Ray tasks: {seconds:.0f} s")
    for name in ("proxy_loss_round_1", "proxy_loss_round_2", "proxy_loss_round_3", "target_loss", "target_loss_uniform",
                 "target_loss_natural"):  # fmt: skip
        print(f"{ROWS[name]:<40}{result.summary[name]:>9.3f}")
    print("weights of what is drawn: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--transformers", action="store_true", help="the second run, with real decoders as proxies")
    parser.add_argument("--no-pruning", action="store_true", help="no cluster is pruned")
    asked = parser.parse_args()
    pieces = corpus()
    if asked.transformers:
        smoke(pieces)
    else:
        plain = MIXTURE | {"problem": MIXTURE["problem"] | {"prune": []}}
        judged(pieces, range(asked.first, asked.first + asked.seeds), plain if asked.no_pruning else MIXTURE)


if __name__ == "__main__":
    main()
