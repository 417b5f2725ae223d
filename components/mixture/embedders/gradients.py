"""Pictures -> vectors: what strokes are where, and where the ink is.

Histograms of oriented gradients (Dalal and Triggs, 2005) over a grid of cells say what strokes are where; mean
intensities of the cells say where the ink is. Each block is scaled to unit variance, the whole is reduced by PCA with
half whitening (a component's scale is the square root of its standard deviation, so that neither the first few nor the
noise decide) and scaled to unit length, so that Euclidean distances between centroids are at most 2.
"""

from __future__ import annotations

import numpy as np

from components.mixture.problem import Embedder


class Gradients(Embedder[np.ndarray]):
    """`cells` a side, `orientations` over 180 degrees, `dimensions` of the result. The seed changes nothing."""

    modality = "image"

    def __init__(self, *, cells: int = 4, orientations: int = 8, dimensions: int = 32) -> None:
        self.cells, self.orientations, self.dimensions = cells, orientations, dimensions

    def fit_transform(self, samples: np.ndarray, seed: int) -> np.ndarray:
        blocks = [self._gradients(samples), self._intensities(samples)]
        scaled = [b / max(float(b.std(axis=0).mean()), 1e-12) / b.shape[1] ** 0.5 for b in blocks]
        features = np.concatenate(scaled, axis=1)
        features -= features.mean(axis=0)
        # PCA through the covariance: [F, F] is small, [n, F] need not be decomposed
        variances, axes = np.linalg.eigh(features.T @ features / len(features))
        variances, axes = variances[::-1][: self.dimensions], axes[:, ::-1][:, : self.dimensions]
        deviations = np.sqrt(np.maximum(variances, 1e-12))
        vectors = features @ axes / np.sqrt(deviations)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _gradients(self, images: np.ndarray) -> np.ndarray:
        gray = images.mean(axis=1, dtype=np.float64) / 255.0  # [n, H, W]
        down, across = np.gradient(gray, axis=(1, 2))
        strength = np.hypot(down, across)
        turn = (np.arctan2(down, across) % np.pi) / np.pi * self.orientations
        low = np.floor(turn).astype(int) % self.orientations
        share = turn - np.floor(turn)  # an angle between two bins counts for both
        bins = np.zeros((*gray.shape, self.orientations))
        np.put_along_axis(bins, low[..., None], (strength * (1 - share))[..., None], axis=-1)
        high = ((low + 1) % self.orientations)[..., None]
        np.put_along_axis(bins, high, (strength * share)[..., None], axis=-1)
        cells = self._pool(bins)  # [n, cells * cells, orientations]
        flat = cells.reshape(len(cells), -1)
        # the floor keeps a blank picture blank, instead of blowing its noise up to strokes
        return np.sqrt(flat / np.maximum(flat.sum(axis=1, keepdims=True), 0.1))

    def _intensities(self, images: np.ndarray) -> np.ndarray:
        pooled = self._pool(images.transpose(0, 2, 3, 1).astype(np.float64) / 255.0)
        return pooled.reshape(len(images), -1)

    def _pool(self, values: np.ndarray) -> np.ndarray:
        """[n, H, W, c] -> means over the cells, [n, cells * cells, c]."""
        rows = np.array_split(np.arange(values.shape[1]), self.cells)
        columns = np.array_split(np.arange(values.shape[2]), self.cells)
        means = [values[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean(axis=(1, 2)) for r in rows for c in columns]
        return np.stack(means, axis=1)
