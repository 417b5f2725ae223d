"""Scikit-learn's handwritten digits (UCI optical recognition of handwritten digits, test set): 1,797 labelled pictures.

Mechanism: each 8x8 array of ink counts 0..16 becomes a grey PNG, 0 black and 16 white. Absent on purpose: any resizing -
the data set says what size its pictures have.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from components.interfaces import Broken, Part, Sample, Source


class Digits(Source):
    """1,797 handwritten digits, bright strokes on black, label "0".."9"."""

    def __init__(self) -> None: ...

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        from PIL import Image
        from sklearn.datasets import load_digits

        data = load_digits()
        for index, (ink, label) in enumerate(zip(data.images, data.target, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray((ink * 255.0 / 16.0).round().astype("uint8")).save(buffer, "PNG")
            yield Sample(f"digits/{index:05d}", buffer.getvalue(), label=str(label))
