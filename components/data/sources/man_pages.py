"""Manual pages in many languages, as installed: the same kind of text, often the very same page, in each of them.

Mechanism: 1. the pages of the wanted languages and sections below `/usr/share/man`, compressed or not; 2. their macros taken
away, a document a page, or pieces of it; the label is the language; 3. a page that only names another, or is a link to it,
is no document. A language with fewer than `least` pages counts as not installed: some programs bring a page or two in
many languages, and a corpus of these would be a surprise.
Absent on purpose: aligning pages between languages.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.data.locations import SourceError, read_each, why
from components.data.sources import _parts, _roff
from components.data.sources._text import NotText, documents, to_text
from components.interfaces import Broken, Part, Sample, Source

#: Debian's packages that are not called after the language's code
_PACKAGES = {"en": "manpages", "pt_BR": "manpages-pt-br", "zh_CN": "manpages-zh", "zh_TW": "manpages-zh"}


class ManPages(Source):
    """`languages`: codes such as "en", "de", "pt_BR"; `sections`: digits, all if there are none; `limit`: the most pages of
    a language, spread evenly over the names; `piece`: the most characters of a sample."""

    modalities = ("text",)

    def __init__(
        self,
        *,
        languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",),
        sections: str = "",
        limit: Annotated[int, Field(ge=1)] | None = None,
        least: Annotated[int, Field(ge=1)] = 100,
        piece: Annotated[int, Field(ge=16)] | None = None,
        root: str = "/usr/share/man",
    ) -> None:
        self.languages, self.sections, self.limit, self.least = languages, sections, limit, least
        self.piece, self.root = piece, root

    def parts(self) -> Sequence[Part]:
        return [part for language in self.languages for part in _parts.divide(self._pages(language))]

    def _pages(self, language: str) -> list[tuple[list[str], int]]:
        folder = Path(self.root, "" if language == "en" else language)
        paths = [path for path in folder.glob(f"man[{self.sections or '0-9'}]*/*") if path.is_file()]
        if len(paths) < self.least:
            package = _PACKAGES.get(language, f"manpages-{language.lower()}")
            raise SourceError(
                f"{folder} has {len(paths)} manual pages, fewer than {self.least}: the language '{language}' is not "
                f"installed (Debian: apt-get install {package})"
            )
        paths = sorted(path for path in paths if not path.is_symlink())
        if self.limit is not None and len(paths) > self.limit:
            paths = [paths[number * len(paths) // self.limit] for number in range(self.limit)]
        return [([path.relative_to(self.root).as_posix()], path.stat().st_size) for path in paths]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for name, data in zip(part.files, read_each(self.root, part.files), strict=True):
            key = _parts.key_of(self.root, name)
            if isinstance(data, OSError):
                yield Broken(key, why(data))
                continue
            try:
                source = to_text(gzip.decompress(data) if name.endswith(".gz") else data)
            except (OSError, EOFError, zlib.error) as error:
                yield Broken(key, f"damaged: {error}")
            except NotText as error:
                yield Broken(key, str(error))
            else:
                if text := _roff.text(source):
                    language = name.split("/")[0]
                    label = "en" if language.startswith("man") else language
                    yield from documents(key, text, label, self.piece)
