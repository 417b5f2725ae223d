"""Samples of a data set for a page to look at: pictures, beginnings of texts, waveforms, curves, all inside the page.

From each split a few shards are opened (more of them where they are small), and evenly spaced rows of each shown; of a store,
only these are fetched.
Large pictures are made small, sounds that are too large to put into a page are drawn but cannot be played.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows import charts

if TYPE_CHECKING:
    from components.interfaces import Files

_PICTURE = 160  # pixels of a picture's longer side in the page
_TEXT = 420  # characters
_PLAYABLE = 160_000  # bytes of a sound
_SHARDS = 3  # of a split that are opened in any case, and more
_READ = 64 << 20  # up to so many bytes


@dataclass(frozen=True)
class Example:
    """A sample to show: `uri` of a picture or a playable sound, `svg` of a sound or an array, `text` of a text; one of
    another kind that cannot be shown has its reason in `text`."""

    kind: str  # image, text, audio, array
    key: str
    label: str
    caption: str
    uri: str = ""
    svg: str = ""
    text: str = ""
    small: bool = False  # a picture with few pixels, to be drawn large with hard edges


def of_split(files: Files, split: str, count: int, size: int) -> list[Example]:
    """Evenly spaced samples of a split of `size` bytes."""
    import numpy as np

    from components.data import shards

    names = shards.shard_names(files, split)
    open_ = min(len(names), count, max(_SHARDS, _READ * len(names) // max(size, 1)))
    chosen = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, open_).astype(int))]
    found: list[Example] = []
    for number, name in enumerate(chosen):
        wanted = count * (number + 1) // len(chosen) - count * number // len(chosen)
        rows = _read(files, name)
        found += [_example(row) for row in _rows(rows, _spread(len(rows), wanted))]
    return found


def _spread(length: int, count: int) -> list[int]:
    """`count` places evenly over a length, in the middle of their stretches."""
    return sorted({int((i + 0.5) * length / count) for i in range(min(count, length))})


def of_keys(files: Files, keys: Iterable[str], shards_at_most: int = 8) -> dict[str, Example]:
    """The samples with these keys, by key; those in more shards than may be opened are left out."""
    from components.data import shards

    wanted = set(keys)
    places: dict[str, list[int]] = {}
    for part in shards.index(files, ["key", "shard", "row"]) if wanted else ():
        for row in part.to_pylist():
            if row["key"] in wanted and (row["shard"] in places or len(places) < shards_at_most):
                places.setdefault(row["shard"], []).append(row["row"])
    found = (_example(row) for name, rows in places.items() for row in _rows(_read(files, name), rows))
    return {example.key: example for example in found}


def _read(files: Files, name: str) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(files.path(name))


def _rows(table: Any, rows: Iterable[int]) -> list[dict[str, Any]]:
    places = [int(row) for row in rows]
    return table.take(places).to_pylist() if places else []


def _example(row: Mapping[str, Any]) -> Example:
    """A row of a shard as it is shown: by the first modality that it has."""
    common = {"key": row["key"], "label": row["label"] or "", "caption": row["caption"] or ""}
    makers: dict[str, Callable[[Any], dict[str, Any]]] = {
        "image": _image,
        "text": _text,
        "audio": _audio,
        "array": _array,
    }
    for kind, make in makers.items():
        if row.get(kind) is not None:
            value = row[kind]["bytes"] if kind in ("image", "audio") else row[kind]
            return Example(kind, **common, **make(value))
    return Example("text", **common, text="(nothing)")


def _image(data: bytes) -> dict[str, Any]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.draft("RGB", (2 * _PICTURE, 2 * _PICTURE))
            shown = ImageOps.exif_transpose(picture)
            small = max(shown.size) < _PICTURE
            if shown.mode not in ("L", "RGB"):
                shown = shown.convert("RGB")
            shown.thumbnail((_PICTURE, _PICTURE))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        return {"text": f"cannot be shown: {error}"}
    buffer = io.BytesIO()
    shown.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    return {"uri": _uri("image/png" if small else "image/jpeg", buffer.getvalue()), "small": small}


def _text(text: str) -> dict[str, Any]:
    return {"text": text[:_TEXT] + ("…" if len(text) > _TEXT else "")}


def _audio(data: bytes) -> dict[str, Any]:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            samples = sound.read(min(sound.frames, 60 * sound.samplerate), "float32", always_2d=True)
            kind = {"WAV": "audio/wav", "FLAC": "audio/flac", "OGG": "audio/ogg", "MP3": "audio/mpeg"}.get(sound.format)
    except soundfile.LibsndfileError as error:
        return {"text": f"cannot be shown: {error.error_string}"}
    playable = kind and len(data) <= _PLAYABLE
    return {"svg": charts.wave_svg(samples.T), "uri": _uri(kind, data) if kind and playable else ""}


def _array(data: bytes) -> dict[str, Any]:
    import numpy as np

    values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    shape = " x ".join(map(str, values.shape))
    return {
        "svg": charts.curves_svg(values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)),
        "text": shape,
    }


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
