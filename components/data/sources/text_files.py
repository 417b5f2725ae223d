"""A folder of texts: one document a file, whatever it is called, or long ones in pieces.

    texts/                         {type: text_files, path: texts}                       every file, the whole
      letters/1821-03-04.txt       {type: text_files, path: texts, endings: [.md, .py]}  these files only
      essays/on walking.md         {type: text_files, path: texts, piece: 2000}          pieces of up to 2,000 characters

Mechanism: 1. every file below the folder in a fixed order, hidden ones left out; 2. read as UTF-8, what is not is `Broken`
with the first wrong byte; 3. the first subfolder is the label; 4. a piece ends after a paragraph, a line or a word.
Absent on purpose: markup is text like any other, and nothing is normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from components.data.locations import listing, read_each, why
from components.data.sources import _parts
from components.data.sources._text import NotText, documents, to_text
from components.interfaces import Broken, Part, Sample, Source


class TextFiles(Source):
    """Texts of a folder, of a file or of a URL such as `s3://bucket/texts`.

    `endings`: of the files to read, all if there are none; `piece`: the most characters of a sample.

    >>> from pathlib import Path
    >>> source = TextFiles(path=str(Path(__file__).parent), endings=("_files.py",))
    >>> [sample.key for sample in source.samples()]
    ['text_files.py']
    """

    modalities = ("text",)

    def __init__(
        self, *, path: str, endings: tuple[str, ...] = (), piece: Annotated[int, Field(ge=16)] | None = None
    ) -> None:
        self.path, self.endings, self.piece = path, [ending.lower() for ending in endings], piece

    def parts(self) -> Sequence[Part]:
        found = listing(self.path, "texts")
        if self.endings:
            found = _parts.of_kind(self.path, found, self.endings, "texts")
        return _parts.divide(([entry.name], entry.size) for entry in found)

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for name, data in zip(part.files, read_each(self.path, part.files), strict=True):
            key = _parts.key_of(self.path, name)
            label = key.split("/")[0] if "/" in key else None
            if isinstance(data, OSError):
                yield Broken(key, why(data))
                continue
            try:
                yield from documents(key, to_text(data), label, self.piece)
            except NotText as error:
                yield Broken(key, str(error))
