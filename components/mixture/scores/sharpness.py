"""Sharpness of a picture: its largest intensity step between neighboring pixels, in [0, 1]; a blurred one has none."""

from __future__ import annotations

import numpy as np

from components.mixture.problem import SampleScore


class Sharpness(SampleScore[np.ndarray]):
    """The default threshold 0.1 asks for one edge of 26 of 255 gray levels."""

    modality = "image"

    def __init__(self, *, threshold: float = 0.1) -> None:
        self.threshold = threshold

    def score(self, samples: np.ndarray) -> np.ndarray:
        gray = samples.mean(axis=1, dtype=np.float32) / 255.0  # [n, H, W]
        across = np.abs(np.diff(gray, axis=2)).max(axis=(1, 2))
        down = np.abs(np.diff(gray, axis=1)).max(axis=(1, 2))
        return np.maximum(across, down)
