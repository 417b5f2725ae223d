"""Texts -> vectors: which letters follow which. Tells languages, alphabets and kinds of text apart without knowing any.

1. Character n-grams of the beginning of a text are counted in hashed columns (scikit-learn's HashingVectorizer): no
   vocabulary, so nothing depends on what else is in the pool. Counts go through log(1 + count), so that the few n-grams
   that every text is full of do not decide, and rows are scaled to unit length.
2. The rows are reduced by a truncated SVD of the pool, and every vector is scaled to unit length, so that Euclidean
   distances between centroids are at most 2.
Deliberately absent: meaning. Two topics in one language are near each other; a sentence encoder is another embedder.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from components.mixture.problem import Embedder


class HashedNgrams(Embedder[list[str]]):
    """n-grams of `shortest` to `longest` characters in `buckets` columns, of the first `characters` of a text (the paper's
    encoder reads 512 tokens); `dimensions` of the result."""

    modality = "text"

    def __init__(
        self,
        *,
        shortest: Annotated[int, Field(ge=1)] = 3,
        longest: Annotated[int, Field(ge=1)] = 3,
        buckets: Annotated[int, Field(ge=64)] = 2**16,
        dimensions: Annotated[int, Field(ge=2)] = 32,
        characters: Annotated[int, Field(ge=16)] = 1500,
    ) -> None:
        self.shortest, self.longest, self.buckets = shortest, max(shortest, longest), buckets
        self.dimensions, self.characters = dimensions, characters

    def fit_transform(self, samples: list[str], seed: int) -> np.ndarray:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.preprocessing import normalize

        counts = HashingVectorizer(
            analyzer="char", ngram_range=(self.shortest, self.longest), lowercase=False, n_features=self.buckets,
            alternate_sign=False, norm=None,
        ).transform(text[: self.characters] for text in samples)  # fmt: skip
        counts.data = np.log1p(counts.data)
        dimensions = min(self.dimensions, len(samples))
        vectors = TruncatedSVD(dimensions, random_state=seed).fit_transform(normalize(counts))
        return normalize(vectors)
