"""A sample on the terminal: a picture in half blocks, a sound as its envelope, the beginning of a text.

Everything that came from outside is shown as letters only: what would steer a terminal is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.text import Text

_WIDE = 28  # letters across of a picture
_LETTERS = 100  # of a text


def content(row: Mapping[str, Any]) -> str:
    """A line that shows what a sample is, besides its picture."""
    found = []
    if row.get("text") is not None:
        found.append(line(row["text"]))
    if row.get("audio") is not None:
        found.append(envelope(row["audio"]["bytes"]))
    if row.get("array") is not None:
        found.append(_shape(row["array"]))
    if row["caption"] is not None:
        found.append(line(row["caption"]))
    return "  ".join(found)


def drawn(pictures: Sequence[bytes], width: int) -> Text:
    """Encoded pictures side by side, `width` letters at most; each letter is two pixels, the upper one its colour, the
    lower one its ground. What cannot be decoded is left black."""
    from rich.text import Text

    from components.data.images import check, decode
    from components.interfaces import ImageFormat

    across = max(4, min(_WIDE, width // len(pictures) - 2)) // 2 * 2
    black = np.zeros((3, across, across), np.uint8)
    decoded = [black if check(data) else decode(data, ImageFormat(across, 3)) for data in pictures]
    text = Text(no_wrap=True)
    for top in range(0, across, 2):
        for picture in decoded:
            for upper, lower in zip(picture[:, top].T.tolist(), picture[:, top + 1].T.tolist(), strict=True):
                text.append("▀", style=f"rgb({','.join(map(str, upper))}) on rgb({','.join(map(str, lower))})")
            text.append("  ")
        text.append("\n")
    return text


def envelope(data: bytes, letters: int = 60) -> str:
    """The peaks of a sound over its length, a letter for each stretch; the full block is full scale, one step is 6 dB."""
    from components.data.audio import check, decode

    if reason := check(data):
        return f"cannot be shown: {reason}"
    loud = np.abs(decode(data, 8000)).max(axis=0)
    peaks = [float(part.max(initial=0)) for part in np.array_split(loud, letters)]
    steps = [8 + round(20 * float(np.log10(max(peak, 1e-6))) / 6) for peak in peaks]
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, max(0, step))] for step in steps)


def _shape(data: bytes) -> str:
    """The shape of an array, and its range."""
    from components.data.facts import measure
    from components.interfaces import Sample

    found = measure(Sample("", array=data))
    if found["rows"] is None:
        return "cannot be shown: not an array of numbers"
    size = f"{found['rows']:.0f} x {found['columns']:.0f}"
    return size if found["minimum"] is None else f"{size}, {found['minimum']:.4g} to {found['maximum']:.4g}"


def line(text: str, letters: int = _LETTERS) -> str:
    """Somebody's text on one line: cut, and without what would steer a terminal."""
    words = "".join(letter if letter.isprintable() else "·" for letter in " ".join(text.split()))
    return words if len(words) <= letters else words[: letters - 1] + "…"
