"""The source of Python's standard library, as installed: real program text without a download.

Mechanism: 1. every `.py` file of the library in a fixed order, without what others have installed beside it; 2. read in the
encoding that it declares; 3. a document a file, or pieces of it; the label is the top package or module (`json`, `abc`).
The files differ between versions of Python, so the same recipe gives other data elsewhere.
Absent on purpose: parsing. Files that are wrong by intention (they test the compiler) are texts like any other.
"""

from __future__ import annotations

import io
import os
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.data.locations import SourceError, read_each, why
from components.data.sources import _parts
from components.data.sources._text import documents
from components.interfaces import Broken, Part, Sample, Source

_NOT_THE_LIBRARY = ("site-packages", "dist-packages", "__pycache__")


class PythonStdlib(Source):
    """`packages`: which, all if none are named; `piece`: the most characters of a sample.

    >>> source = PythonStdlib(packages=("json",))
    >>> next(iter(source.samples())).key
    'json/__init__.py'
    """

    modalities = ("text",)

    def __init__(self, *, packages: tuple[str, ...] = (), piece: Annotated[int, Field(ge=16)] | None = None) -> None:
        self.packages, self.piece = packages, piece

    def parts(self) -> Sequence[Part]:
        found = [(name, size) for name, size in _files() if not self.packages or _label(name) in self.packages]
        missing = set(self.packages) - {_label(name) for name, _ in found}
        if missing or not found:
            raise SourceError(f"{_root()} has no source of {', '.join(sorted(missing)) or 'the standard library'}")
        return _parts.divide(([name], size) for name, size in found)

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for name, data in zip(part.files, read_each(str(_root()), part.files), strict=True):
            if isinstance(data, OSError):
                yield Broken(name, why(data))
            elif data:  # an empty `__init__.py` is a usual thing, and says nothing
                yield from self._document(name, data)

    def _document(self, name: str, data: bytes) -> Iterator[Sample | Broken]:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.decode(encoding)
        except (SyntaxError, UnicodeDecodeError) as error:
            yield Broken(name, f"not in the encoding that it declares: {error}")
            return
        if not text.isspace():
            yield from documents(name, text, _label(name), self.piece)


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files() -> list[tuple[str, int]]:
    """(name below the library's folder, bytes), sorted."""
    found = []
    for folder, folders, files in os.walk(_root()):
        folders[:] = [name for name in folders if name not in _NOT_THE_LIBRARY]
        paths = [Path(folder, name) for name in files if name.endswith(".py")]
        found += [(path.relative_to(_root()).as_posix(), path.stat().st_size) for path in paths]
    return sorted(found)


def _label(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")
