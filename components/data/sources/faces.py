"""Scikit-image's subset of Labeled Faces in the Wild: 100 faces and 100 pieces of the backgrounds behind them, 25 x 25, grey.

Mechanism: the array's values 0..1 become grey PNGs; the first half are faces, the second is none, as scikit-image says.
Source: Huang, Mattar, Lee, Learned-Miller, "Learning to Align from Scratch", NIPS 2012.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from components.data.sources import _scikit_image
from components.interfaces import Broken, Part, Sample, Source


class Faces(Source):
    """200 grey pictures, label "face" or "non-face". Needs scikit-image."""

    def __init__(self) -> None: ...

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        import numpy as np
        from PIL import Image

        pictures = np.load(_scikit_image.file("lfw_subset.npy"), allow_pickle=False)  # float [200, 25, 25]
        for index, picture in enumerate(pictures):
            buffer = io.BytesIO()
            Image.fromarray((picture * 255).round().astype(np.uint8)).save(buffer, "PNG")
            label = "face" if index < len(pictures) // 2 else "non-face"
            yield Sample(f"faces/{index:03d}", buffer.getvalue(), label=label)
