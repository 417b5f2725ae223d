"""Characters drawn with the text fonts that ship with matplotlib, each in several hands.

Mechanism: 1. every text font (DejaVu, STIX, Computer Modern) that has the character; 2. drawn large, cut to its ink and
fitted into the frame; 3. a small affine change (rotation, shear, aspect) and a stroke made thicker or thinner, decided by
a generator seeded with font, character and variant; 4. scaled down to the final size.
Absent on purpose: symbols-only fonts, and any noise - the pictures are clean drawings.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from components.interfaces import Broken, Part, Sample, Source

_CANVAS = 64  # pixels a side while drawing

#: fonts of symbols, display sizes or one script: they have no ordinary letters at the usual code points
_NOT_TEXT = ("Display", "Siz", "NonUni", "cmex", "cmmi", "cmsy", "LastResort")


class Glyphs(Source):
    """Grey pictures of characters, label = the character, caption = its Unicode name.

    >>> source = Glyphs(characters="A", variants=1)
    >>> next(iter(source.samples())).caption
    'LATIN CAPITAL LETTER A'
    """

    def __init__(
        self,
        *,
        characters: str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
        variants: Annotated[int, Field(ge=1, le=1000)] = 8,
        size: Annotated[int, Field(ge=8, le=512)] = 16,
        seed: int = 0,
    ) -> None:
        self.characters, self.variants, self.size, self.seed = characters, variants, size, seed

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        import unicodedata

        from PIL import Image

        for path in fonts():
            font, covered = _open(path)
            for character in self.characters:
                if ord(character) not in covered:
                    continue
                drawing = _draw(font, character)
                for variant in range(self.variants):
                    key = f"glyphs/{path.stem}/U+{ord(character):04X}/{variant}"
                    rng = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
                    picture = _vary(drawing, rng, plain=variant == 0).resize(
                        (self.size, self.size), Image.Resampling.BOX
                    )
                    buffer = io.BytesIO()
                    picture.save(buffer, "PNG")
                    yield Sample(key, buffer.getvalue(), label=character, caption=unicodedata.name(character, ""))


def fonts() -> list[Path]:
    """The text fonts of matplotlib, in a fixed order."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [path for path in sorted(folder.glob("*.ttf")) if not any(part in path.stem for part in _NOT_TEXT)]


def _open(path: Path):  # -> (ImageFont, code points)
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    return ImageFont.truetype(str(path), 56), set(FT2Font(str(path)).get_charmap())


def _draw(font, character: str):
    """The character alone, cut to its ink."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = (int(v) for v in font.getbbox(character))
    image = Image.new("L", (max(1, right - left) + 4, max(1, bottom - top) + 4), 0)
    ImageDraw.Draw(image).text((2 - left, 2 - top), character, fill=255, font=font)
    return image.crop(image.getbbox() or (0, 0, 1, 1))


def _vary(drawing, rng: np.random.Generator, plain: bool):
    """Fits the drawing into the frame with a hand's irregularity; `plain` is the drawing as the font has it."""
    from PIL import Image, ImageFilter

    frame = _CANVAS
    fill = 0.92 if plain else rng.uniform(0.8, 1.0)
    scale = fill * frame / max(drawing.size)
    stretch = 1.0 if plain else rng.uniform(0.9, 1.35)
    width = min(frame, max(6, round(drawing.width * scale * stretch)))
    height = max(6, round(drawing.height * scale))
    image = Image.new("L", (frame, frame), 0)
    place = ((frame - width) // 2, (frame - height) // 2)
    image.paste(drawing.resize((width, height), Image.Resampling.BILINEAR), place)
    if plain:
        return image
    angle, shear = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.2)
    cos, sin, half = np.cos(angle), np.sin(angle), frame / 2
    matrix = np.array([[cos, sin + shear], [-sin, cos]])
    offset = np.array([half, half]) - matrix @ np.array([half, half]) + rng.uniform(-2, 2, 2)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    image = image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    stroke = rng.integers(-1, 3)  # pixels of the large drawing
    if stroke:
        image = image.filter(ImageFilter.MaxFilter(2 * int(stroke) + 1) if stroke > 0 else ImageFilter.MinFilter(3))
    return image
