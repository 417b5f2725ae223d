"""Documents out of files: bytes to text, and long texts into pieces that end where a paragraph or line does."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from components.data.sources._checked import checked
from components.interfaces import Broken, Sample

_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotText(ValueError):
    """Bytes that are not text in UTF-8."""


def to_text(data: bytes) -> str:
    """UTF-8, with or without a mark at its beginning. Raises NotText with the reason."""
    if not data:
        raise NotText("the file is empty")
    if data.startswith(_UTF16):
        raise NotText("the text is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from error


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` characters, cut after the last paragraph that fits, else after the last line,
    else after the last word, else anywhere. Put together they are the text.

    >>> list(pieces("One.\\n\\nTwo,\\nthree.", size=12))
    ['One.\\n\\n', 'Two,\\nthree.']
    """
    start = 0
    while len(text) - start > size:
        window = text[start : start + size]
        ends = [match.end() for match in _PARAGRAPH.finditer(window)]
        cut = ends[-1] if ends else window.rfind("\n") + 1 or window.rfind(" ") + 1 or size
        yield text[start : start + cut]
        start += cut
    if start < len(text):
        yield text[start:]


def documents(key: str, text: str, label: str | None, piece: int | None) -> Iterator[Sample | Broken]:
    """One sample, or one for each piece with `#0`, `#1`, ... after the key; pieces of nothing but space are left out."""
    whole = checked(Sample(key, text=text, label=label))
    if piece is None or isinstance(whole, Broken):
        yield whole
        return
    for number, part in enumerate(pieces(text, piece)):
        if not part.isspace():
            yield Sample(f"{key}#{number}", text=part, label=label)
