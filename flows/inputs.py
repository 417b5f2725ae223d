"""What a person has at hand - arrays, PIL pictures, paths - as the pixels that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from components.interfaces import ImageFormat

    Pictures = np.ndarray | Image | str | Path | Sequence[Image | str | Path | np.ndarray]


class ServingError(ValueError):
    """A reference, label or picture that a model cannot use; the message says what was expected."""

    user_error = True


def pictures(images: Pictures, image: ImageFormat) -> np.ndarray:
    """What a person has at hand -> uint8 [n, C, size, size]; raises ServingError for what is not a picture."""
    if isinstance(images, np.ndarray):
        return _from_array(images, image)
    if isinstance(images, str | Path) or not isinstance(images, Sequence):
        return _one(images, image)[None]
    if not images:
        return np.empty((0, image.channels, image.size, image.size), np.uint8)
    parts = [_from_array(p, image) if isinstance(p, np.ndarray) else _one(p, image)[None] for p in images]
    return np.concatenate(parts)


def _one(picture: Any, image: ImageFormat) -> np.ndarray:
    """A path or a PIL picture -> [C, size, size]"""
    from PIL import Image

    from components.data.images import check, decode, fit

    if isinstance(picture, Image.Image):
        return fit(picture, image)
    if not isinstance(picture, str | Path):
        raise ServingError(f"expected a picture (array, PIL image or path), got {type(picture).__name__}")
    path = Path(picture)
    if not path.is_file():
        raise ServingError(f"there is no picture at {path}")
    broken = check(path.read_bytes())
    if broken:
        raise ServingError(f"{path}: {broken}")
    return decode(path, image)


def _from_array(pixels: np.ndarray, image: ImageFormat) -> np.ndarray:
    """uint8 in any of the usual orders -> [n, C, size, size]"""
    from PIL import Image

    from components.data.images import fit

    if pixels.dtype != np.uint8:
        raise ServingError(f"pictures are uint8 from 0 to 255, got {pixels.dtype} of shape {list(pixels.shape)}")
    counts = (1, 3, 4)
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in counts):
        pixels = pixels[None]
    elif pixels.ndim == 3 and pixels.shape[0] == image.channels == 3:
        raise ServingError(
            f"{list(pixels.shape)} could be one color picture or three gray ones; pass [1, 3, H, W] or [3, H, W, 1]"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]  # [n, H, W]
    if pixels.ndim != 4:
        raise ServingError(
            f"expected [n, H, W, C], [n, C, H, W], [n, H, W], [H, W, C] or [H, W], got {list(pixels.shape)}"
        )
    if pixels.shape[-1] not in counts:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.shape[-1] not in counts:
        raise ServingError(f"pictures have 1, 3 or 4 channels, got an array of shape {list(pixels.shape)}")
    if pixels.shape[1:] == (image.size, image.size, image.channels):
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    fitted = [fit(Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p), image) for p in pixels]
    return np.stack(fitted) if fitted else np.empty((0, image.channels, image.size, image.size), np.uint8)
