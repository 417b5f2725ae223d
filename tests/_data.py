"""Data sets of samples made in a test, written as the dataset stage writes them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from components.data import writing
from components.data.files import Folder
from components.data.near_duplicates import Signer
from components.interfaces import MODALITIES, Broken, ImageFormat, Part, Sample, Source

_SAMPLES: dict[str, Sequence[Sample | Broken]] = {}


class Given(Source):
    """The samples of a test, by name, `step` a part."""

    def __init__(self, *, name: str, step: int = 100) -> None:
        self.name, self.step = name, step

    def parts(self) -> Sequence[Part]:
        return [Part((), n, n + self.step) for n in range(0, len(_SAMPLES[self.name]), self.step)]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        yield from _SAMPLES[self.name][part.start : part.stop]


def write(
    folder: Path,
    source: Sequence[Sample | Broken],
    target: Sequence[Sample | Broken] | None = None,
    image: ImageFormat | None = None,
    held_out: float = 0.2,
    signer: Signer | None = None,
) -> Path:
    """A data set in `folder`, with its dataset.json; texts are signed where a signer is given."""
    origins: dict[writing.Origin, Sequence[Sample | Broken]] = {"target": target} if target else {}
    origins["source"] = source
    samples = [sample for given in origins.values() for sample in given if isinstance(sample, Sample)]
    has = {name for name in MODALITIES for sample in samples if getattr(sample, name) is not None}
    layout = writing.Layout(tuple(name for name in MODALITIES if name in has), held_out, target is not None, signer)
    jobs = []
    for origin, given in origins.items():
        spec = {"type": f"{__name__}:Given", "name": f"{folder}/{origin}"}
        _SAMPLES[f"{folder}/{origin}"] = given
        jobs += [(origin, spec, part) for part in Given(name=spec["name"]).parts()]
    written = [
        writing.write_part(writing.Job(number, origin, spec, part), layout, Folder(folder))
        for number, (origin, spec, part) in enumerate(jobs)
    ]
    (folder / "dataset.json").write_text(json.dumps(writing.Whole(written).summary(layout, image)))
    return folder


def picture(number: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """A small PNG of noise."""
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image: object, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)  # type: ignore[attr-defined]
    return buffer.getvalue()


def sound(samples: np.ndarray, rate: int = 8000) -> bytes:
    """float [n] or [n, channels] in [-1, 1] -> a WAV file."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def tokens(folder: Path, values: dict[str, np.ndarray], vocabulary: int) -> Path:
    """Token data in `folder`: split -> [n, L]."""
    length = next(iter(values.values())).shape[1]
    for split, array in values.items():
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "part-00000-000.tokens.npy", array)
        np.save(folder / split / "part-00000-000.labels.npy", np.zeros(len(array), np.int64))
    spec = {"codebook_sizes": [vocabulary], "positions": length, "layout": "sequence", "grid": None}
    (folder / "tokens.json").write_text(json.dumps({"spec": spec, "classes": [], "target_classes": []}))
    return folder


__all__ = ["Given", "array", "encoded", "picture", "sound", "tokens", "write"]


class Counting:
    """A folder that notes what is asked for."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.asked = folder, Counter[str]()

    def names(self) -> list[str]:
        return self.folder.names()

    def path(self, name: str) -> Path:
        self.asked[name.partition("/")[0]] += 1
        return self.folder.path(name)
