"""Texts that are nearly the same: MinHash signatures, and groups of texts whose signatures agree.

1. A text becomes its set of shingles: `shingle` neighbouring words, in small letters.
2. Its signature has, for each of `permutations` hash functions h(x) = (a x + b) mod p, the smallest hash of any shingle;
   the share of equal places of two signatures estimates the Jaccard similarity of the sets (Broder, 1997).
3. Locality-sensitive hashing finds candidates: signatures that agree in a whole band; pairs that reach the threshold are
   joined, and a group is named by its first text.
Signing is a few array operations a text; banding is datasketch's choice of bands for the threshold.
Absent on purpose: stemming, language, and any exact comparison of texts - exact duplicates are found by content hash.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_PRIME = np.uint64((1 << 61) - 1)
_WORD = re.compile(r"\w+")
_EMPTY = 0xFFFFFFFF


@dataclass(frozen=True)
class Signer:
    """Signs texts; the same parameters give comparable signatures.

    >>> signer = Signer(shingle=2)
    >>> same = signer.sign("The cat sat on the mat.") == signer.sign("the cat, sat on the MAT")
    >>> bool(same.all())
    True
    """

    shingle: int = 5
    permutations: int = 128
    seed: int = 1

    def sign(self, text: str) -> np.ndarray:
        """uint32 [permutations]; a text without words agrees with every other such text."""
        words = _WORD.findall(text.lower())
        size = min(self.shingle, max(len(words), 1))
        shingles = {" ".join(words[i : i + size]) for i in range(len(words) - size + 1)}
        if not words:
            return np.full(self.permutations, _EMPTY, np.uint32)
        hashes = np.fromiter((zlib.crc32(s.encode()) for s in shingles), np.uint64, len(shingles))
        a, b = _functions(self.permutations, self.seed)
        smallest = np.full(self.permutations, _EMPTY, np.uint64)
        for start in range(0, len(hashes), 4096):  # a long text in pieces, so that the table of hashes stays small
            part = hashes[start : start + 4096]
            table = (np.multiply.outer(part, a) + b) % _PRIME & np.uint64(_EMPTY)  # [shingles, permutations]
            np.minimum(smallest, table.min(axis=0), out=smallest)
        return smallest.astype(np.uint32)

    @staticmethod
    def read(data: bytes) -> np.ndarray:
        """A signature from its bytes."""
        return np.frombuffer(data, np.uint32)


@lru_cache(maxsize=8)
def _functions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the hash functions. `a` is below 2^29, so that its product with a 32-bit hash fits 64 bits."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(1, 1 << 29, count, dtype=np.uint64) | np.uint64(1),
        rng.integers(0, 1 << 61, count, dtype=np.uint64),
    )


def near_duplicates(signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """uint32 [n, permutations] -> int64 [n]: for each row the first row of its group, itself where it is alone.

    Two rows are joined when at least the share `threshold` of their places agree, and what is joined to the same is one
    group."""
    from datasketch import MinHashLSH

    n, permutations = signatures.shape
    parent = np.arange(n)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    # banded for less than is asked: a candidate too many costs a comparison, one too few would be missed
    bands = MinHashLSH(threshold=max(0.1, threshold - 0.2), num_perm=permutations, weights=(0.2, 0.8))
    for band in range(bands.b):
        part = np.ascontiguousarray(signatures[:, band * bands.r : (band + 1) * bands.r])
        _, bucket, sizes = np.unique(part, axis=0, return_inverse=True, return_counts=True)
        order = np.argsort(bucket, kind="stable")
        for members in np.split(order, np.cumsum(sizes)[:-1]):
            seen: list[int] = []  # one row of each group in this bucket
            for i in members.tolist() if len(members) > 1 else ():
                like = [j for j in seen if root(i) != root(j) and (signatures[i] == signatures[j]).mean() >= threshold]
                for j in like:
                    a, b = root(i), root(j)
                    parent[max(a, b)] = min(a, b)
                if not any(root(i) == root(j) for j in seen):
                    seen.append(i)
    return np.array([root(i) for i in range(n)], dtype=np.int64)
