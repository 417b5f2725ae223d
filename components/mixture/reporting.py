"""From chosen cluster weights to a result: final losses beside the baselines, tables of clusters and proxies.

Labels are read here and nowhere else: they say how much weight went to clusters whose samples mostly carry labels that
occur in the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from components.interfaces import MixtureData, MixtureResult
from components.mixture import figures, samples
from components.mixture.clusters import Clusters
from components.mixture.search import Found, Trial


@dataclass
class Choice:
    """`alpha` [K] is the answer; `trials` what was trained for it; `rivals` name -> mixtures [m, K] to compare with, of
    which the mean final loss is reported."""

    alpha: np.ndarray
    trials: list[Trial] = field(default_factory=list)
    fitted_on: list[int] = field(default_factory=list)
    predicted: float | None = None
    rivals: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def found(cls, found: Found) -> Choice:
        return cls(found.alpha, found.trials, found.fitted_on, found.predicted)

    def add_random(self, trials: list[Trial]) -> None:
        """Random mixtures and the best of them as rivals."""
        self.rivals["random_mean"] = np.stack([t.alpha for t in trials])
        self.rivals["best_of_n"] = max(trials, key=lambda t: t.score).alpha[None]


def report(
    choice: Choice, clusters: Clusters, final_losses: Callable[[np.ndarray], list[float]], data: MixtureData, seed: int
) -> MixtureResult:
    """`final_losses`: mixtures [m, K] -> losses of the final models on the test part of the target, in the unit of the
    objective (bits per token for n-grams and `mean`)."""
    alpha, shares = choice.alpha, clusters.shares
    rivals = {"uniform": np.full((1, len(alpha)), 1.0 / len(alpha)), "natural": shares[None], **choice.rivals}
    mixtures = {"found": alpha[None], **rivals}
    losses = np.array(final_losses(np.concatenate(list(mixtures.values()))))
    ends = np.cumsum([len(rows) for rows in mixtures.values()])
    final = {name: float(part.mean()) for name, part in zip(mixtures, np.split(losses, ends[:-1]), strict=True)}

    summary = {"target_loss": final["found"]}
    summary |= {f"target_loss_{name}": loss for name, loss in final.items() if name != "found"}
    summary["gain_over_uniform"] = final["uniform"] - final["found"]
    summary |= {"clusters": float(len(alpha)), "pruned_samples": float((clusters.of_sample < 0).sum())}
    summary |= {"proxies": float(len(choice.trials)), "clusters_used": float((alpha > 0).sum())}
    pool, target = samples.of(data.pool), samples.of(data.target)
    rows = cluster_rows(clusters, alpha, data, pool)
    summary |= label_summary(rows)
    summary |= search_summary(choice.trials)
    tables = {
        "clusters": rows,
        "history": [_trial_row(i, trial, clusters.names) for i, trial in enumerate(choice.trials)],
        "baselines": [
            {"mixture": name, "target_loss": loss} for name, loss in sorted(final.items(), key=lambda x: x[1])
        ],
        "predictor_fits": [{"fit": i + 1, "rows": n} for i, n in enumerate(choice.fitted_on)],
    }
    pictures = {"clusters": figures.clusters(rows, clusters.of_sample, pool, target, seed)}
    if choice.trials:
        pictures["search"] = figures.search(choice.trials, choice.predicted)
        pictures["baselines"] = figures.baselines(final)
    return MixtureResult(clusters.sample_weights(alpha), summary, tables, pictures)


def cluster_rows(
    clusters: Clusters, alpha: np.ndarray, data: MixtureData, pool: samples.Pictures | samples.Texts
) -> list[dict[str, Any]]:
    """One row a cluster, heaviest first. `labels`: its commonest with their counts; `target_share`: of its labeled samples,
    the share with a target label."""
    wanted = {label for label in data.target_labels if label is not None}
    labels = np.array([label if label is not None else "" for label in data.pool_labels], object)
    rows = []
    for k, name in enumerate(clusters.names):
        members = np.flatnonzero(clusters.of_sample == k)
        mine = [label for label in labels[members] if label]
        common = Counter(mine).most_common(5)
        rows.append({
            "cluster": name, "index": k, "size": int(clusters.sizes[k]), "share": float(clusters.shares[k]),
            "weight": float(alpha[k]), "labels": " ".join(f"{label}:{count}" for label, count in common),
            "target_share": sum(label in wanted for label in mine) / len(mine) if mine else None,
            **pool.columns(members),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["weight"])


def label_summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How much of what is drawn carries a label of the target, against its natural share; nothing without labels.

    Clusters are seldom pure, so each counts for the target as far as its samples do: with d its share of target labels,
    `weight_on_target_classes` is the sum of weight * d (the share of draws with a target label), and the mean weight of
    a target cluster is that over the sum of d. `..._pure` are means over clusters with d > 0.5 and the others."""
    known = [row for row in rows if row["target_share"] is not None]
    weight, natural, d = (np.array([row[name] for row in known]) for name in ("weight", "share", "target_share"))
    if not known or d.sum() == 0 or (1 - d).sum() == 0:
        return {}
    summary = {
        "weight_on_target_classes": float(weight @ d),
        "natural_share_of_target_classes": float(natural @ d),
        "mean_weight_of_target_clusters": float(weight @ d / d.sum()),
        "mean_weight_of_other_clusters": float(weight @ (1 - d) / (1 - d).sum()),
        "target_clusters_pure": float((d > 0.5).sum()),
    }
    if summary["mean_weight_of_other_clusters"] > 0:
        summary["weight_ratio"] = summary["mean_weight_of_target_clusters"] / summary["mean_weight_of_other_clusters"]
    if (d > 0.5).any() and (d <= 0.5).any():
        summary["mean_weight_of_target_clusters_pure"] = float(weight[d > 0.5].mean())
        summary["mean_weight_of_other_clusters_pure"] = float(weight[d <= 0.5].mean())
    return summary


def search_summary(trials: list[Trial]) -> dict[str, float]:
    """Mean proxy loss of each round, and how the predictions of later rounds correlate with what came out."""
    rounds = sorted({t.round for t in trials})
    summary = {f"proxy_loss_round_{r + 1}": -float(np.mean([t.score for t in trials if t.round == r])) for r in rounds}
    pairs = [(t.predicted, t.score) for t in trials if t.predicted is not None]
    if len(pairs) > 2 and min(np.std(pairs, axis=0)) > 0:
        summary["predictor_correlation"] = float(np.corrcoef(np.array(pairs).T)[0, 1])
    return summary


def _trial_row(number: int, trial: Trial, names: tuple[str, ...]) -> dict[str, Any]:
    """Everything about one proxy: its place, its mixture, its score, its seed."""
    weights = dict(zip(names, trial.alpha.tolist(), strict=True))
    row = {"proxy": number, "round": trial.round + 1, "score": trial.score, "predicted": trial.predicted}
    return {**row, "seed": trial.seed, "weights": weights}
