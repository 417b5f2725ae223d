"""Texts that are nearly the same: MinHash signatures, and groups of texts whose signatures agree.

1. A text becomes its set of shingles: `shingle` neighbouring words (or characters), in small letters.
2. Its signature has, for each of `permutations` hash functions, the smallest hash of any shingle; the share of equal places
   of two signatures estimates the Jaccard similarity of the sets (Broder, 1997).
3. Locality-sensitive hashing finds candidates: signatures that agree in a whole band. Candidates whose signatures agree in
   the share `threshold` of all places are joined, and a group is named by its first text.
Hashes are multiply-and-shift (Dietzfelbinger, 1996), a few array operations a text; the choice of bands is datasketch's.
Absent on purpose: stemming, and any exact comparison of texts - exact duplicates are found by content hash.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

_SCRIPT = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Chinese and Japanese put no space between words
_WORD = re.compile(rf"[{_SCRIPT}]|[^\W{_SCRIPT}]+")
_HIGH = np.uint64(32)  # the upper half of a product is the hash
_BLOCK = 512  # shingles at a time: their table of hashes stays in the processor's cache
_LARGEST = np.uint64((1 << 64) - 1)
_MARGIN = (
    0.2  # bands are for so much less than is asked: a candidate too many costs a comparison, one too few is missed
)
_PAIRS = 1 << 16  # compared together


@dataclass(frozen=True)
class Signer:
    """Signs texts; the same parameters give comparable signatures. A word of Chinese or Japanese is one letter; for other
    languages without spaces between words use `unit="character"` (and a `shingle` of 9 or so).

    >>> signer = Signer(shingle=2)
    >>> same = signer.sign("The cat sat on the mat.") == signer.sign("the cat, sat on the MAT")
    >>> bool(same.all())
    True
    """

    shingle: int = 5
    permutations: int = 128
    seed: int = 1
    unit: Literal["word", "character"] = "word"

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Signer:
        """As the section `near_duplicates` of a recipe says."""
        return cls(shingle=section["shingle"], permutations=section["permutations"], unit=section["unit"])

    def sign(self, text: str) -> np.ndarray:
        """uint32 [permutations]. A text with fewer units than a shingle is one shingle; one without words is compared by
        its other characters."""
        units = self._units(text)
        size = max(1, min(self.shingle, len(units)))
        mixed, a, b = _functions(self.permutations, self.shingle, self.seed)
        count = max(len(units) - size + 1, 0)
        shingles = np.zeros(count, np.uint64)
        for place in range(size if count else 0):
            shingles += units[place : place + count] * mixed[place]
        shingles >>= _HIGH
        smallest = np.full(self.permutations, _LARGEST)
        for start in range(0, count, _BLOCK):
            table = np.multiply.outer(shingles[start : start + _BLOCK], a)  # [shingles, permutations]
            table += b
            np.minimum(smallest, table.min(axis=0), out=smallest)
        return (smallest >> _HIGH).astype(np.uint32)

    def _units(self, text: str) -> np.ndarray:
        """uint64 [n]: a number below 2^32 for each word or character."""
        lower = text.lower()
        words = _WORD.findall(lower) if self.unit == "word" else []
        if words:
            data = "\n".join(words).encode("utf-8", "surrogatepass").split(b"\n")
            return np.array(list(map(zlib.crc32, data)), np.uint64)
        characters = " ".join(lower.split()).encode("utf-32-le", "surrogatepass")
        return np.frombuffer(characters, "<u4").astype(np.uint64)

    @staticmethod
    def read(data: bytes) -> np.ndarray:
        """A signature from its bytes."""
        return np.frombuffer(data, np.uint32)


@lru_cache(maxsize=8)
def _functions(count: int, shingle: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random 64-bit coefficients: of the places of a shingle, and (a, b) of each hash function."""
    rng = np.random.default_rng(seed)
    a, b, mixed = (rng.integers(0, 1 << 64, size, dtype=np.uint64) for size in (count, count, shingle))
    return mixed | np.uint64(1), a | np.uint64(1), b


def near_duplicates(signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """uint32 [n, permutations] -> int64 [n]: for each row the first row of its group, itself where it is alone.

    Two candidates are joined when at least the share `threshold` of their places agree, and what is joined to the same is
    one group; so the groups do not depend on the order of the rows."""
    from datasketch import MinHashLSH
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, permutations = signatures.shape
    bands = MinHashLSH(threshold=max(0.1, threshold - _MARGIN), num_perm=permutations, weights=(0.2, 0.8))
    joined: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    for band in range(bands.b):
        pairs, larger = _buckets(signatures[:, band * bands.r : (band + 1) * bands.r])
        joined.append(pairs[_agree(signatures, pairs, threshold)])
        joined += (_joined(signatures, members, threshold) for members in larger)
    edges = np.concatenate(joined)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(n, n))
    count, group = connected_components(graph, directed=False)
    first = np.full(count, n, np.int64)
    np.minimum.at(first, group, np.arange(n))
    return first[group]


def _buckets(band: np.ndarray) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Rows that agree in a whole band (uint32 [n, r]): those that are two, int64 [pairs, 2], and each larger set."""
    key = np.zeros(len(band), np.uint64)
    for (
        column
    ) in band.T:  # to one number; two rows that only share that number become candidates, and are then told apart
        key = (key + column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
    sizes = np.diff(starts, append=len(order))
    two = starts[sizes == 2]
    large = zip(starts[sizes > 2], sizes[sizes > 2], strict=True)
    return np.stack([order[two], order[two + 1]], axis=1), (order[start : start + size] for start, size in large)


def _agree(signatures: np.ndarray, pairs: np.ndarray, threshold: float) -> np.ndarray:
    """bool [pairs]: which rows agree in enough places."""
    found = [
        (signatures[part[:, 0]] == signatures[part[:, 1]]).mean(axis=1) >= threshold
        for part in (pairs[start : start + _PAIRS] for start in range(0, len(pairs), _PAIRS))
    ]
    return np.concatenate(found) if found else np.empty(0, bool)


def _joined(signatures: np.ndarray, members: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [edges, 2]: a tree over each set of these rows that hangs together. A row is compared with those only that no
    tree has reached, so that ten thousand copies cost ten thousand comparisons."""
    edges = []
    waiting, reached = members, members[:0]
    while len(waiting):
        if not len(reached):
            reached, waiting = waiting[:1], waiting[1:]
        row, reached = reached[0], reached[1:]
        like = (signatures[waiting] == signatures[row]).mean(axis=1) >= threshold
        found = waiting[like]
        edges.append(np.stack([np.full(len(found), row), found], axis=1))
        reached, waiting = np.concatenate([reached, found]), waiting[~like]
    return np.concatenate(edges) if edges else np.empty((0, 2), np.int64)
