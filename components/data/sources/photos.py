"""Crops of the photographs that lie in scikit-learn's and scikit-image's packages: real pictures without a download.

Mechanism: 1. a photograph is a part; 2. each crop is a square of a side between `size` and half of the photograph's shorter
side (at least `size`), at a place decided by a generator that is seeded with photograph and number; 3. scaled to `size`
with Lanczos and kept as PNG, label = the photograph. Crops of one photograph overlap.
Absent on purpose: flips and colours - changes while training are transforms.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from components.data.locations import SourceError
from components.data.sources import _scikit_image
from components.interfaces import Broken, Part, Sample, Source

_SCIKIT_LEARN = {"china": "china.jpg", "flower": "flower.jpg"}
_SCIKIT_IMAGE = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "ihc": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}


class Photos(Source):
    """`count` crops of `size` x `size` pixels of each photograph. `photographs`: which; those of all installed packages if
    none are named, and those of scikit-learn (china, flower) are always there.

    >>> source = Photos(photographs=("flower",), count=2, size=32)
    >>> [sample.key for sample in source.samples()]
    ['photos/flower/00000', 'photos/flower/00001']
    """

    def __init__(
        self,
        *,
        photographs: tuple[str, ...] = (),
        count: Annotated[int, Field(ge=1, le=100_000)] = 256,
        size: Annotated[int, Field(ge=8, le=400)] = 64,
        seed: int = 0,
    ) -> None:
        self.photographs, self.count, self.size, self.seed = photographs, count, size, seed

    def parts(self) -> Sequence[Part]:
        names = self.photographs or [*_SCIKIT_LEARN, *(_SCIKIT_IMAGE if _scikit_image.folder() else ())]
        return [Part((name,)) for name in names]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        from PIL import Image

        for name in part.files:
            with Image.open(_path(name)) as file:
                photograph = file.convert("L" if file.mode == "L" else "RGB")
            for number in range(self.count):
                rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), number])
                side = int(rng.integers(self.size, max(self.size, min(photograph.size) // 2) + 1))
                left, top = (int(rng.integers(0, edge - side + 1)) for edge in photograph.size)
                box = (left, top, left + side, top + side)
                crop = photograph.resize((self.size, self.size), Image.Resampling.LANCZOS, box)
                buffer = io.BytesIO()
                crop.save(buffer, "PNG")
                yield Sample(f"photos/{name}/{number:05d}", buffer.getvalue(), label=name)


def _path(name: str) -> Path:
    if name in _SCIKIT_LEARN:
        package = find_spec("sklearn")
        if package is None or not package.submodule_search_locations:
            raise SourceError("these photographs come with scikit-learn; install it with: pip install scikit-learn")
        return Path(package.submodule_search_locations[0], "datasets", "images", _SCIKIT_LEARN[name])
    if name not in _SCIKIT_IMAGE:
        known = ", ".join([*_SCIKIT_LEARN, *_SCIKIT_IMAGE])
        raise SourceError(f"there is no photograph '{name}' (there are: {known})")
    return _scikit_image.file(_SCIKIT_IMAGE[name])
