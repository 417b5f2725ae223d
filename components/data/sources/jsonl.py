"""Texts in JSON lines: one object a line, in `.jsonl`, `.ndjson` or `.json` files, as they are or with `.gz`.

    reviews.jsonl    {"text": "Well made, but loud.", "label": "coffee machine"}
                     {"text": "Does what it should.", "label": "kettle"}

Mechanism: 1. small files are read together; a large one is divided by bytes, and a line belongs to the piece in which it
begins (a compressed one cannot be divided); 2. a line that is no JSON object, no UTF-8, or has no text is `Broken`, and the
next one is read; 3. the key is the file and the byte at which the line begins: `reviews.jsonl#0`, `reviews.jsonl#58`.
Absent on purpose: columns inside of others, and files that hold one large array.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import IO

from components.data import locations
from components.data.sources import _parts
from components.data.sources._checked import checked, plain
from components.data.sources._text import NotText, to_text
from components.interfaces import Broken, Part, Sample, Source

_ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz")


class Jsonl(Source):
    r"""Texts of a file, a folder or a URL such as `s3://bucket/reviews.jsonl.gz`; `text` and `label` are the names in the
    objects. A label that is not there is none.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    ...     [sample.text for sample in Jsonl(path=folder).samples()]
    ['one', 'two']
    """

    modalities = ("text",)

    def __init__(self, *, path: str, text: str = "text", label: str = "label") -> None:
        self.path, self.text, self.label = path, text, label

    def parts(self) -> Sequence[Part]:
        found = _parts.of_kind(self.path, locations.listing(self.path, "JSON lines"), _ENDINGS, "JSON lines")
        parts: list[Part] = []
        small: list[tuple[list[str], int]] = []
        for entry in found:
            compressed = _parts.key_of(self.path, entry.name).lower().endswith(".gz")
            if compressed or entry.size <= _parts.BYTES:
                small.append(([entry.name], entry.size))
                continue
            parts += [*_parts.divide(small), *_parts.ranges(entry.name, entry.size, _parts.BYTES)]
            small = []
        return parts + _parts.divide(small)

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for name in part.files:
            key = _parts.key_of(self.path, name)
            try:
                with locations.open(self.path, name) as file:
                    yield from self._file(key, file, part)
            except OSError as error:
                yield Broken(key, locations.why(error))

    def _file(self, key: str, file: IO[bytes], part: Part) -> Iterator[Sample | Broken]:
        head = file.read(64)
        file.seek(0)
        if (compressed := head.startswith(b"\x1f\x8b")) or head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            if part.start > 0:  # all of it was said of the first piece
                return
            if not compressed:
                yield Broken(key, "it holds one JSON array; expected one object a line (jq -c '.[]' makes it so)")
                return
        lines: IO[bytes] = io.BufferedReader(gzip.GzipFile(fileobj=file)) if compressed else file
        at = self._begin(lines, part.start)
        begun = at
        try:
            while (part.stop is None or compressed or at < part.stop) and (line := lines.readline()):
                if line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield self._line(f"{key}#{at}", line)
                at += len(line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Broken(key, f"damaged after byte {at} of its content: {error}")
            return
        if at == begun == 0:
            yield Broken(key, "the file is empty")

    @staticmethod
    def _begin(lines: IO[bytes], start: int) -> int:
        """Where the first line begins that is not that of an earlier piece."""
        if start == 0:
            return 0
        lines.seek(start - 1)
        return start - 1 + len(lines.readline())

    def _line(self, key: str, line: bytes) -> Sample | Broken:
        try:
            row = json.loads(to_text(line))
        except NotText as error:
            return Broken(key, str(error))
        except (ValueError, RecursionError) as error:
            return Broken(key, f"not JSON: {error}")
        if not isinstance(row, dict):
            return Broken(key, f"expected an object, found {type(row).__name__}")
        text = row.get(self.text)
        if not isinstance(text, str):
            there = f"there is {', '.join(row)[:80]}" if row else "the object is empty"
            found = f"'{self.text}' is {json.dumps(text)[:40]}" if self.text in row else there
            return Broken(key, f"expected a text in '{self.text}'; {found}")
        return checked(Sample(key, text=text, label=plain(row.get(self.label))))
