"""Small charts as inline SVG, for pages without script and without network: histograms, bars, waveforms, curves.

Colours are CSS classes (`s-train`, `s-target`, `s-held_out`, or `c0` .. `c3` for channels), so that a page decides how they
look in light and dark. Every mark has a <title>, which browsers show under the pointer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from flows.terminal import number

if TYPE_CHECKING:
    import numpy as np

_WIDTH, _HEIGHT, _FOOT = 320, 126, 18  # of a histogram, in pixels; below it the numbers of its ends
_BINS = 28
_DISTINCT = 14  # so few different values have a bar each
_TAIL = 0.005  # share on each side that goes into the last bin, so that one outlier does not squeeze the others


@dataclass(frozen=True)
class Bins:
    """A histogram before it is drawn: `shares` of each group sum to 1; `edges` has one more than there are bins, or is
    empty where every bin is one value."""

    names: list[str]  # what each bin holds, for people
    shares: dict[str, list[float]]
    low: str  # at the left end of the axis, and
    high: str


def histogram(groups: Mapping[str, np.ndarray]) -> Bins | None:
    """Bins that all groups of numbers share; None where there is no number. NaN is left out."""
    import numpy as np

    values = {name: array[np.isfinite(array)] for name, array in groups.items()}
    values = {name: array for name, array in values.items() if len(array)}
    if not values:
        return None
    everything = np.concatenate(list(values.values()))
    distinct = np.unique(everything)
    if len(distinct) <= _DISTINCT:
        names = [number(float(value)) for value in distinct]
        counts = {name: np.searchsorted(distinct, array) for name, array in values.items()}
        shares = {name: _shares(places, len(distinct)) for name, places in counts.items()}
        return Bins(names, shares, names[0], names[-1])
    low, high = np.quantile(everything, [_TAIL, 1 - _TAIL])
    if low == high:
        low, high = distinct[0], distinct[-1]
    edges = np.linspace(low, high, _BINS + 1)
    names = [f"{number(float(a))} to {number(float(b))}" for a, b in pairwise(edges)]
    names[0], names[-1] = f"up to {number(float(edges[1]))}", f"{number(float(edges[-2]))} and more"
    shares = {
        name: _shares(np.clip(np.searchsorted(edges, array, side="right") - 1, 0, _BINS - 1), _BINS)
        for name, array in values.items()
    }
    return Bins(names, shares, number(float(distinct[0])), number(float(distinct[-1])))


def _shares(places: np.ndarray, bins: int) -> list[float]:
    import numpy as np

    return (np.bincount(places, minlength=bins) / max(len(places), 1)).tolist()


def histogram_svg(bins: Bins) -> str:
    """Filled steps, one colour a group; all on one scale, so that groups of any size compare."""
    top = max(max(shares) for shares in bins.shares.values())
    tall, wide = _HEIGHT - _FOOT, _WIDTH / len(bins.names)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" class="histogram">']
    for name, shares in bins.shares.items():
        heights = [share / top * (tall - 6) for share in shares]
        steps = " ".join(
            f"L{i * wide:.1f},{tall - h:.1f} L{(i + 1) * wide:.1f},{tall - h:.1f}" for i, h in enumerate(heights)
        )
        parts.append(f'<path d="M0,{tall} {steps} L{_WIDTH},{tall} Z" class="s-{name}"/>')
    for index, bin in enumerate(bins.names):
        told = "\n".join(f"{name}: {shares[index]:.1%}" for name, shares in bins.shares.items())
        parts.append(
            f'<rect x="{index * wide:.1f}" y="0" width="{wide:.1f}" height="{tall}" class="hover">'
            f"<title>{escape(bin)}\n{told}</title></rect>"
        )
    parts.append(f'<line x1="0" y1="{tall}" x2="{_WIDTH}" y2="{tall}" class="axis"/>')
    parts.append(f'<text x="0" y="{_HEIGHT - 4}">{escape(bins.low)}</text>')
    if bins.high != bins.low:
        parts.append(f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{escape(bins.high)}</text>')
    return "".join([*parts, "</svg>"])


def bars_svg(rows: Sequence[tuple[str, Mapping[str, float]]], width: int = 460, label: int = 130) -> str:
    """One horizontal bar a row, made of one piece a group, with its name before it and its sum behind it."""
    top = max((sum(groups.values()) for _, groups in rows), default=0) or 1
    line, room = 21, width - label - 56
    parts = [f'<svg viewBox="0 0 {width} {line * len(rows)}" role="img" class="bars">']
    for index, (name, groups) in enumerate(rows):
        y, x = index * line, float(label)
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(
            f'<text x="{label - 8}" y="{y + 14}" text-anchor="end">{escape(short)}<title>{escape(name)}</title></text>'
        )
        for group, value in groups.items():
            piece = value / top * room
            if value:
                parts.append(
                    f'<rect x="{x:.1f}" y="{y + 3}" width="{max(piece, 0.8):.1f}" height="{line - 7}" class="s-{group}">'
                    f"<title>{escape(name)}, {group}: {number(value)}</title></rect>"
                )
            x += piece
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 14}" class="soft">{number(sum(groups.values()))}</text>')
    return "".join([*parts, "</svg>"])


def wave_svg(samples: np.ndarray, width: int = 280, height: int = 72, points: int = 140) -> str:
    """The envelope of a sound [channels, samples] in [-1, 1]: the least and the largest value of each stretch."""
    import numpy as np

    mono = samples[int(np.abs(samples).max(axis=1).argmax())] if samples.size else np.zeros(1)
    stretches = np.array_split(mono, min(points, len(mono)))
    middle, step = height / 2, width / len(stretches)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="wave">']
    parts.append(f'<line x1="0" y1="{middle}" x2="{width}" y2="{middle}" class="axis"/>')
    for index, stretch in enumerate(stretches):
        upper = middle - np.clip(stretch.max(), -1, 1) * (middle - 1)
        lower = middle - np.clip(stretch.min(), -1, 1) * (middle - 1)
        parts.append(
            f'<rect x="{index * step:.1f}" y="{upper:.1f}" width="{step * 0.7:.2f}" height="{max(lower - upper, 0.6):.1f}"/>'
        )
    return "".join([*parts, "</svg>"])


def curves_svg(values: np.ndarray, width: int = 280, height: int = 90, points: int = 200) -> str:
    """The first four columns of an array [rows, columns] over its rows, on one scale. NaN breaks a line."""
    import numpy as np

    shown = values[:: max(1, len(values) // points), :4].astype(float)
    finite = shown[np.isfinite(shown)]
    low, span = (float(finite.min()), float(np.ptp(finite)) or 1.0) if finite.size else (0.0, 1.0)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" class="curves">']
    for column in range(shown.shape[1]):
        path, pen = [], "M"
        for row, value in enumerate(shown[:, column]):
            if not np.isfinite(value):
                pen = "M"
                continue
            x = row / max(len(shown) - 1, 1) * width
            path.append(f"{pen}{x:.1f},{height - 4 - (value - low) / span * (height - 8):.1f}")
            pen = "L"
        parts.append(f'<path d="{" ".join(path)}" class="c{column}"/>')
    return "".join([*parts, "</svg>"])


def escape(text: str) -> str:
    """Text inside SVG."""
    from markupsafe import escape as escaped

    return str(escaped(text))
