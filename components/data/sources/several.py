"""Several sources as one: each under a name, which becomes the label of its samples.

    {type: several, sources: {german: {type: man_pages, languages: [de]}, code: {type: python_stdlib, piece: 1500}}}

Mechanism: 1. the parts of each source, in the order of the recipe; a part carries the name as the first of its files;
2. `labels`: `name` - a sample's label is the name of its source; `prefix` - name and own label, `code/json`; 3. every key
begins with the name, so the same source may stand there twice; 4. texts of the sources named by `shuffled` have their
characters in random order: as many of each as before and no sense, a decoy that any choice of data must avoid.
Absent on purpose: weights (a mixture's affair) and interleaving (readers shuffle).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from components.interfaces import MODALITIES, Broken, Part, Sample, Source
from components.registry import ComponentError, Spec, nearest


class Several(Source):
    """`sources`: name -> source; `labels`: how they are labelled; `shuffled`: names of decoys.

    >>> from components import registry
    >>> config = {"type": "several", "sources": {"help": {"type": "pydoc_text"}}}
    >>> sample = next(iter(registry.build(Source, config).samples()))
    >>> sample.key, sample.label
    ('help/pydoc/assert', 'help')
    """

    def __init__(
        self,
        *,
        sources: Annotated[dict[str, Spec[Source]], Field(min_length=1)],
        labels: Literal["name", "prefix"] = "name",
        shuffled: tuple[str, ...] = (),
    ) -> None:
        self.sources = {name: spec.build() for name, spec in sources.items()}
        self.labels, self.shuffled = labels, shuffled
        has = {modality for source in self.sources.values() for modality in source.modalities}
        self.modalities = tuple(modality for modality in MODALITIES if modality in has)
        for name in shuffled:
            if name not in self.sources:
                names = list(self.sources)
                raise ComponentError(
                    f"no source is called '{name}'{nearest(name, names)} (there are: {', '.join(names)})", ("shuffled",)
                )
            if "text" not in self.sources[name].modalities:
                raise ComponentError(f"only texts can be shuffled, and '{name}' yields none", ("shuffled",))

    def parts(self) -> Sequence[Part]:
        return [
            dataclasses.replace(part, files=(name, *part.files))
            for name, source in self.sources.items()
            for part in source.parts()
        ]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        name, *files = part.files
        for sample in self.sources[name].read(dataclasses.replace(part, files=tuple(files))):
            key = f"{name}/{sample.key}"
            if isinstance(sample, Broken):
                yield Broken(key, sample.reason)
                continue
            label = f"{name}/{sample.label}" if self.labels == "prefix" and sample.label is not None else name
            text = sample.text
            if text is not None and name in self.shuffled:
                text = shuffle(text, key)
            yield dataclasses.replace(sample, key=key, label=label, text=text)


def shuffle(text: str, seed: str) -> str:
    """The characters of a text in an order that follows from the seed.

    >>> sorted(shuffle("two words", "a")) == sorted("two words"), shuffle("two words", "a") == shuffle("two words", "a")
    (True, True)
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    return "".join(text[i] for i in rng.permutation(len(text)))
