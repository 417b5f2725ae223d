"""Samples as they leave a source: every modality looked at once, so that what follows can rely on it."""

from __future__ import annotations

import io
from typing import Any

from components.interfaces import MODALITIES, Broken, Sample


def checked(sample: Sample) -> Sample | Broken:
    """The sample, or why it cannot be used."""
    for modality in MODALITIES:
        value = getattr(sample, modality)
        if value is not None and (reason := why_broken(modality, value)):
            return Broken(sample.key, reason)
    for name in ("label", "caption"):
        if reason := _not_storable(getattr(sample, name)):
            return Broken(sample.key, f"its {name} {reason}")
    return sample


def why_broken(modality: str, value: Any) -> str | None:
    """What is wrong with the content of one modality; None where nothing is."""
    if modality == "image":
        from components.data.images import check

        return check(value)
    if modality == "audio":
        from components.data.audio import check

        return check(value)
    return _not_text(value) if modality == "text" else _not_array(value)


def _not_text(text: str) -> str | None:
    if not text or text.isspace():
        return "it holds no text"
    if "\0" in text:
        return "binary data, not text"
    reason = _not_storable(text)
    return f"it {reason}" if reason else None


def _not_storable(text: str | None) -> str | None:
    """Half of a surrogate pair (JSON can spell one) is no character, and no file can hold it."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        return f"holds half a character (\\u{ord(error.object[error.start]):04x} at {error.start})"
    return None


def _not_array(data: bytes) -> str | None:
    import numpy as np

    if not data:
        return "the file is empty"
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        return f"not an array in .npy format: {error}"
    return None if array.size else f"the array is empty (shape {array.shape})"


def plain(value: Any) -> str | None:
    """A label or caption as text; an empty one says nothing."""
    return None if value is None or value == "" else str(value)
