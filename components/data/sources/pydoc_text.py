"""The topics of Python's `help()`: some eighty pieces of English technical prose without a download.

Mechanism: a document a topic, as `pydoc_data.topics` has it, or pieces of it; without labels, for they are of one kind.
Absent on purpose: the documentation strings of modules, which are `python_stdlib`'s text already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from components.data.sources._text import documents
from components.interfaces import Broken, Part, Sample, Source


class PydocText(Source):
    """English texts about Python; `piece`: the most characters of a sample.

    >>> next(iter(PydocText().samples())).key
    'pydoc/assert'
    """

    modalities = ("text",)

    def __init__(self, *, piece: Annotated[int, Field(ge=16)] | None = None) -> None:
        self.piece = piece

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        from pydoc_data.topics import topics

        for topic in sorted(topics):
            yield from documents(f"pydoc/{topic}", topics[topic], None, self.piece)
