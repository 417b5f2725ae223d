"""Quality of a text by four rules of thumb, in [0, 1]: what a filter can see without a trained judge.

The score is the product of
1. letters: the share of letters and digits among what is not space, from 0 at 0.4 to 1 at 0.6 (C4 and Gopher ask for
   something of the kind; program text has about 0.75, a table of rules and bars far less);
2. repetition: 1 minus the share of characters in lines that stood in this text before (Gopher, arXiv:2112.11446, table A1),
   times how well the whole compresses: from 0 at a twentieth of its size to 1 at a fifth (zlib; prose of a thousand
   characters needs about a half);
3. line structure: the share of its characters that stand in lines of more than three characters: a column of crumbs is no
   text. Indentation does not count;
4. order: how many different pairs of neighbouring characters it has, relative to the same characters in random order, from 0
   at 0.97 to 1 at 0.85. Languages and programs have about 0.6 in a thousand characters; shuffled letters, random strings and
   base64 have 1. Texts under 200 characters are not judged by it: too few pairs repeat.
Deliberately absent: the classifiers for educational value and advertisement that the paper distils from a large language
model; knowledge of any language; the order of words.
"""

from __future__ import annotations

import unicodedata
import zlib

import numpy as np

from components.mixture.problem import SampleScore

_READ = 20_000  # characters from the beginning
_CRUMB = 3  # characters of a line
_ORDERED = 200  # characters from which the order is judged


class TextQuality(SampleScore[list[str]]):
    """
    >>> TextQuality().score(["A sentence of the usual kind, with words that differ.", "the same line\\n" * 50])
    array([1., 0.])
    """

    modality = "text"

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def score(self, samples: list[str]) -> np.ndarray:
        return np.array([quality(text[:_READ]) for text in samples])


def quality(text: str) -> float:
    """The product of the four rules; 0 for a text of spaces."""
    solid = "".join(text.split())
    if not solid:
        return 0.0
    return letters(solid) * repetition(text) * lines(text) * order(text)


def letters(solid: str) -> float:
    """Of a text without its spaces. Marks that belong to letters (accents, vowel signs) count with them."""
    share = sum(unicodedata.category(letter)[0] in "LMN" for letter in solid) / len(solid)
    return _ramp(share, 0.4, 0.6)


def repetition(text: str) -> float:
    seen: set[str] = set()
    repeated = total = 0
    for line in (line.strip() for line in text.splitlines()):
        total += len(line)
        repeated += len(line) * (line in seen)
        seen.add(line)
    data = text.encode()
    return (1 - repeated / max(total, 1)) * _ramp(len(zlib.compress(data, 6)) / len(data), 0.05, 0.2)


def lines(text: str) -> float:
    sizes = [len(line.strip()) for line in text.splitlines()]
    return sum(size for size in sizes if size > _CRUMB) / max(sum(sizes), 1)


def order(text: str) -> float:
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
    if len(characters) < _ORDERED:
        return 1.0
    return 1 - _ramp(_pairs(characters) / _pairs(np.random.default_rng(0).permutation(characters)), 0.85, 0.97)


def _pairs(characters: np.ndarray) -> int:
    return len(np.unique(characters[:-1] << 21 | characters[1:]))


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))
