"""Pictures of a mixture and of its search, as PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from components.mixture.samples import Pictures, Texts
    from components.mixture.search import Trial

INK, PALE, FOUND = "#1f3a5f", "#c8d3e0", "#d1495b"
ROUNDS = ("#9db4c8", "#4f86b5", "#d1495b", "#7a3b69")


def clusters(
    rows: list[dict[str, Any]], of_sample: np.ndarray, pool: Pictures | Texts, target: Pictures | Texts, seed: int
) -> bytes:
    """The target, then every cluster, heaviest first: its weight beside its natural share, and examples."""
    rng = np.random.default_rng(seed)
    figure = _figure(11, 0.42 * (len(rows) + 1) + 0.7)
    top, bottom = 1 - 0.5 / figure.get_figheight(), 0.06 / figure.get_figheight()
    step = (top - bottom) / (len(rows) + 1)
    figure.text(0.03, 1 - 0.28 / figure.get_figheight(), "what the mixture draws", weight="bold", color=INK, size=11)
    figure.text(0.24, 1 - 0.28 / figure.get_figheight(), "weight (red) and natural share (gray)", color=INK, size=9)
    most = max(max(row["weight"], row["share"]) for row in rows)
    every = [(target, np.arange(len(target))), *((pool, np.flatnonzero(of_sample == row["index"])) for row in rows)]
    for i, (samples, mine) in enumerate(every):
        low = top - (i + 1) * step
        strip = figure.add_axes((0.46, low + 0.04 * step, 0.53, 0.92 * step))
        samples.draw(strip, rng.permutation(mine))
        strip.axis("off")
        if i == 0:
            figure.text(0.03, low + 0.35 * step, "target", weight="bold", size=9, color=FOUND)
            continue
        row = rows[i - 1]
        share = "" if row["target_share"] is None else f"{row['target_share']:.0%} target labels"
        figure.text(0.03, low + 0.35 * step, f"{row['cluster']}  {share}", size=8, color=INK)
        bars = figure.add_axes((0.22, low + 0.12 * step, 0.2, 0.76 * step))
        bars.barh([1, 0], [row["weight"], row["share"]], color=[FOUND, PALE], height=0.9)
        bars.text(row["weight"] + 0.02 * most, 1, f"{row['weight']:.1%}", va="center", size=7, color=INK)
        bars.text(row["share"] + 0.02 * most, 0, f"{row['share']:.1%}", va="center", size=6, color="gray")
        bars.set_xlim(0, 1.25 * most)
        bars.axis("off")
    return _png(figure)


def search(trials: list[Trial], predicted: float | None) -> bytes:
    """Losses of the proxies round by round, and predicted against true loss of the rounds that had a prediction."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for number in sorted({t.round for t in trials}):
        color = ROUNDS[min(number, len(ROUNDS) - 1)]
        mine = [(i, t) for i, t in enumerate(trials) if t.round == number]
        left.scatter([i for i, _ in mine], [-t.score for _, t in mine], s=14, color=color, label=f"round {number + 1}")
        left.hlines(-np.mean([t.score for _, t in mine]), mine[0][0] - 0.5, mine[-1][0] + 0.5, color=color, lw=2)
        pairs = [(-t.predicted, -t.score) for _, t in mine if t.predicted is not None]
        if pairs:
            right.scatter(*zip(*pairs, strict=True), s=20, color=color, label=f"round {number + 1}")
    left.set(xlabel="proxy", ylabel="loss on the target's search part", title="proxies, with the mean of each round")
    left.legend(frameon=False, fontsize=8)
    ahead = [t for t in trials if t.predicted is not None]
    if ahead:
        values = [-t.score for t in ahead] + [-t.predicted for t in ahead if t.predicted is not None]
        right.plot([min(values), max(values)], [min(values), max(values)], color=PALE, zorder=0)
        right.legend(frameon=False, fontsize=8)
    else:
        right.text(0.5, 0.5, "one round: nothing was\npredicted before it was trained", ha="center", color=INK)
    title = "the predictor" if predicted is None else f"the predictor; it expects {-predicted:.3f} of its answer"
    right.set(xlabel="predicted loss", ylabel="true loss", title=title)
    for axes in (left, right):
        _plain(axes)
    figure.tight_layout()
    return _png(figure)


def baselines(final: dict[str, float]) -> bytes:
    """Loss of the final model on the test part of the target, by mixture."""
    names = sorted(final, key=lambda name: -final[name])
    figure = _figure(6, 0.35 * len(names) + 1)
    axes = figure.subplots()
    axes.scatter(
        [final[n] for n in names], range(len(names)), s=60, color=[FOUND if n == "found" else INK for n in names]
    )
    for i, name in enumerate(names):
        axes.annotate(f"{final[name]:.3f}", (final[name], i), (8, -3), textcoords="offset points", size=8)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set(xlabel="final loss on the target's test part (lower is better)", ylim=(-0.6, len(names) - 0.4))
    axes.margins(x=0.15)
    axes.grid(axis="y", color=PALE, lw=0.5)
    _plain(axes)
    figure.tight_layout()
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(9)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
