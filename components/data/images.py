"""Pictures in and out: encoded bytes -> arrays of one size, and arrays -> one picture to look at."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.interfaces import ImageFormat


def check(data: bytes) -> str | None:
    """Why these bytes are not a picture; None when they are."""
    from PIL import Image, ImageOps

    if not data:
        return "the file is empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
    except Image.UnidentifiedImageError:
        return "not a picture"
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        return f"damaged: {error}" if str(error) else f"damaged ({type(error).__name__})"
    return None


def decode(data: bytes | Path, image: ImageFormat) -> np.ndarray:
    """Encoded bytes (or a file) -> uint8 [C, size, size]: orientation applied, transparency over black, shorter side
    scaled to `size`, centre cut out."""
    from PIL import Image

    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as picture:
        picture.draft(None, (3 * image.size, 3 * image.size))  # large JPEGs are decoded at a fraction of their size
        return fit(picture, image)


def fit(picture: Any, image: ImageFormat) -> np.ndarray:
    """A PIL picture -> uint8 [C, size, size], as `decode`."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):  # 16 bits and more: the range to 8 bits
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        top = 65535.0 if values.max() > 255 else 255.0 if values.max() > 1 or picture.mode != "F" else 1.0
        picture = Image.fromarray((values.clip(0, top) * 255.0 / top).round().astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    picture = picture.convert("L" if image.channels == 1 else "RGB")
    width, height = picture.size
    if (width, height) != (image.size, image.size):
        side = min(width, height)
        left, upper = (width - side) / 2, (height - side) / 2
        method = Image.Resampling.BICUBIC if side < image.size else Image.Resampling.LANCZOS
        picture = picture.resize((image.size, image.size), method, (left, upper, left + side, upper + side))
    pixels = np.asarray(picture)
    return pixels[None] if image.channels == 1 else pixels.transpose(2, 0, 1)


def grid(rows: Sequence[np.ndarray], scale: int = 4, gap: int = 2) -> bytes:
    """Rows of uint8 pictures [n, C, H, W] -> one PNG, each pixel `scale` wide, on a dark ground."""
    from PIL import Image

    height, width = rows[0].shape[-2:]
    columns = max(len(row) for row in rows)
    sheet = np.full(((height + gap) * len(rows) + gap, (width + gap) * columns + gap, 3), 24, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            pixels = np.broadcast_to(picture, (3, height, width)).transpose(1, 2, 0)
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            sheet[top : top + height, left : left + width] = pixels
    image = Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
