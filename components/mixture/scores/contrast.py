"""Contrast of a picture: the standard deviation of its intensities, in [0, 0.5] where black is 0 and white is 1."""

from __future__ import annotations

import numpy as np

from components.mixture.problem import SampleScore


class Contrast(SampleScore[np.ndarray]):
    """The default threshold 0.05 removes clusters of blank or nearly blank pictures (13 of 255 gray levels)."""

    modality = "image"

    def __init__(self, *, threshold: float = 0.05) -> None:
        self.threshold = threshold

    def score(self, samples: np.ndarray) -> np.ndarray:
        return samples.reshape(len(samples), -1).astype(np.float32).std(axis=1) / 255.0
