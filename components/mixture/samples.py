"""The samples of a pool or target, whatever they are: one small class a modality counts, compares and shows them.

Embedders, scores and proxies take the plain values (an array of pictures, a list of texts); everything else that a mixture
does goes through here, so that a further modality is a further class. Amounts say how much a sample holds in the unit in
which mixtures are counted: a text its UTF-8 bytes, a picture 1, for all pictures have as many tokens.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from components.interfaces import Modality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

S = TypeVar("S", np.ndarray, list[str])

_PICTURES = 20  # of a cluster in a figure
_LINES, _CHARACTERS = 2, 120  # of texts in a figure
_SNIPPETS, _SNIPPET = 3, 60  # in a table: how many, how many characters


class Samples(ABC, Generic[S]):
    """`values`: as embedders, scores and proxies of this modality take them."""

    modality: ClassVar[Modality]
    values: S

    def __init__(self, values: S) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @abstractmethod
    def content(self, index: int) -> bytes:
        """What a sample is: equal for equal samples only (among pictures of one shape)."""

    @property
    @abstractmethod
    def amounts(self) -> np.ndarray:
        """How much each sample holds, float64 [n]."""

    @abstractmethod
    def select(self, which: Sequence[int] | np.ndarray) -> S:
        """The values at these places."""

    @abstractmethod
    def columns(self, which: np.ndarray) -> dict[str, Any]:
        """What a table says of these samples, beside their number and labels."""

    @abstractmethod
    def draw(self, axes: Axes, which: np.ndarray) -> None:
        """Shows the first few of these samples in one strip."""

    def digest(self) -> bytes:
        """Of all samples in their order."""
        return hashlib.sha256(b"".join(hashlib.sha256(self.content(i)).digest() for i in range(len(self)))).digest()


class Pictures(Samples[np.ndarray]):
    """uint8 [n, C, H, W]"""

    modality = "image"

    def content(self, index: int) -> bytes:
        return np.ascontiguousarray(self.values[index]).tobytes()

    def digest(self) -> bytes:
        return f"{self.values.shape}".encode() + super().digest()

    @property
    def amounts(self) -> np.ndarray:
        return np.ones(len(self.values))

    def select(self, which: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.values[which]

    def columns(self, which: np.ndarray) -> dict[str, Any]:
        return {}

    def draw(self, axes: Axes, which: np.ndarray) -> None:
        channels, height, width = self.values.shape[1:]
        canvas = np.full((height, _PICTURES * (width + 1), channels), 255, np.uint8)
        for i, image in enumerate(self.values[which[:_PICTURES]]):
            canvas[:, i * (width + 1) : i * (width + 1) + width] = image.transpose(1, 2, 0)
        axes.imshow(canvas[..., 0] if channels == 1 else canvas, cmap="gray", vmin=0, vmax=255)


class Texts(Samples[list[str]]):
    """
    >>> texts = Texts(["größer", "smaller"])
    >>> texts.amounts
    array([8., 7.])
    """

    modality = "text"

    def content(self, index: int) -> bytes:
        return self.values[index].encode()

    @property
    def amounts(self) -> np.ndarray:
        return np.array([len(text.encode()) for text in self.values], float)

    def select(self, which: Sequence[int] | np.ndarray) -> list[str]:
        return [self.values[i] for i in which]

    def columns(self, which: np.ndarray) -> dict[str, Any]:
        shown = which[np.unique(np.linspace(0, len(which) - 1, _SNIPPETS).astype(int))]
        size = sum(len(self.values[i].encode()) for i in which)
        return {"bytes": size, "examples": " | ".join(_line(self.values[i], _SNIPPET) for i in shown)}

    def draw(self, axes: Axes, which: np.ndarray) -> None:
        lines = [_shown(_line(self.values[i], _CHARACTERS)) for i in which[:_LINES]]
        text = "\n".join(lines)
        axes.text(0, 0.5, text, va="center", size=6, family="DejaVu Sans Mono", parse_math=False)
        axes.set(xlim=(0, 1), ylim=(0, 1))


def of(values: np.ndarray | list[str]) -> Pictures | Texts:
    """The samples behind plain values."""
    return Pictures(values) if isinstance(values, np.ndarray) else Texts(values)


def _line(text: str, characters: int) -> str:
    """The beginning of a text in one line."""
    return " ".join(text[: 4 * characters].split())[:characters]


def _shown(text: str) -> str:
    """What the figure's font cannot draw as boxes, in silence: the table has the text itself."""
    return "".join(letter if _in_font(letter) else "□" for letter in text)


@cache
def _in_font(letter: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return bool(get_font(findfont(FontProperties(family="DejaVu Sans Mono"))).get_char_index(ord(letter)))
