"""Making a data set: parts of the sources written apart from each other, then what only the whole can tell.

1. `write_part` reads one part, hashes each sample, decides its split by the hash, measures it and puts shards, index and
   list of broken samples into a sink. It knows no other part, so parts can be written anywhere, in any order.
2. `Whole` compares the content hashes of all parts, eight bytes a sample: of equal ones the first stays (parts of the
   target come before those of the source). Parts that hold a later one are written again without it (`drop`), as are
   parts with rows that validation has put into quarantine.
3. `Whole.summary` is `dataset.json`.
Which part a sample is in is the source's decision, so the bytes do not depend on who writes.
Absent on purpose: shuffling while writing (readers shuffle), and reading anything back from the sink.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from components import registry
from components.data import facts, shards
from components.data.files import Put
from components.data.near_duplicates import Signer
from components.data.shards import SPLITS, DataError
from components.interfaces import Broken, ImageFormat, Modality, Part, Sink, Source

ROWS_PER_SHARD = 10_000
BYTES_PER_SHARD = 256 << 20  # of encoded samples, so that large photographs do not fill the memory
_NAMED = 100  # broken samples that dataset.json names; `broken/` has all of them

Origin = Literal["target", "source"]


@dataclass(frozen=True)
class Layout:
    """What the writers of all parts agree on. `held_out` goes to the split of that name: of the target where there is
    one, else of the source."""

    modalities: tuple[Modality, ...]
    held_out: float
    has_target: bool
    signer: Signer | None = None  # signs texts, where near-duplicates are looked for

    def split(self, origin: Origin, digest: str) -> str:
        if (origin == "target" or not self.has_target) and shards.fraction(digest) < self.held_out:
            return "held_out"
        return "train" if origin == "source" else "target"


@dataclass(frozen=True)
class Job:
    """One part to be written: the `number`-th of all. `drop`: content hash -> why that sample goes into quarantine, None
    for a sample that is elsewhere already."""

    number: int
    origin: Origin
    source: Mapping[str, Any]  # the source as it stands in the recipe
    part: Part
    drop: Mapping[str, str | None] = field(default_factory=dict)


@dataclass
class Written:
    """What `write_part` did."""

    number: int
    origin: str
    stored: list[Put]
    rows: dict[str, int]  # split -> rows
    sizes: dict[str, int]  # split -> bytes of the samples
    shards: list[dict[str, Any]]  # {name, rows, bytes, md5} of each
    labels: dict[str, dict[str, int]]  # split -> label -> rows
    broken: int
    quarantined: int
    reasons: dict[str, int]  # why samples are broken or in quarantine -> how many
    named: list[dict[str, str]]  # the first of them
    duplicates: int
    index: bytes  # the part of the index, a Parquet file
    hashes: np.ndarray = field(
        repr=False, compare=False
    )  # uint64 [rows of the index]: the beginnings of the content hashes

    def about(self) -> dict[str, Any]:
        """Everything but the arrays, for a file."""
        return {name: value for name, value in asdict(self).items() if name not in ("index", "hashes")}

    @classmethod
    def of(cls, about: Mapping[str, Any], index: bytes, hashes: np.ndarray) -> Written:
        """What `about` described."""
        stored = [Put(**entry) for entry in about["stored"]]
        return cls(**{**about, "stored": stored, "index": index, "hashes": hashes})


def write_part(job: Job, layout: Layout, sink: Sink) -> Written:
    """Reads and writes one part. The same job gives the same objects."""
    source = registry.build(Source, job.source)
    writer = _PartWriter(job, layout, sink)
    for sample in source.read(job.part):
        if isinstance(sample, Broken):
            writer.refuse(sample.key, sample.reason)
            continue
        digest = shards.content_hash(sample)
        if digest in writer.seen:
            writer.duplicates += 1
        elif digest in job.drop:
            reason = job.drop[digest]
            if reason is None:
                writer.duplicates += 1
            else:
                writer.refuse(sample.key, reason, quarantined=True)
        else:
            measured: dict[str, Any] = dict(facts.measure(sample))
            if layout.signer is not None and sample.text is not None:
                measured["signature"] = layout.signer.sign(sample.text).tobytes()
            writer.add(layout.split(job.origin, digest), sample, digest, measured)
        writer.seen.add(digest)
    return writer.close()


class _PartWriter:
    """Rows of one part on their way into shards."""

    def __init__(self, job: Job, layout: Layout, sink: Sink) -> None:
        self.job, self.layout, self.sink = job, layout, sink
        self.columns = shards.schema(layout.modalities)
        self.waiting: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.size = dict.fromkeys(SPLITS, 0)  # bytes of the waiting samples
        self.count: Counter[str] = Counter()  # shards of each split
        self.rows: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()
        self.labels: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self.stored: list[Put] = []
        self.shards: list[dict[str, Any]] = []
        self.index: list[dict[str, Any]] = []
        self.refused: list[dict[str, str]] = []
        self.quarantined = self.duplicates = 0
        self.seen: set[str] = set()

    def refuse(self, key: str, reason: str, quarantined: bool = False) -> None:
        self.refused.append({"key": key, "source": self.job.origin, "reason": reason})
        self.quarantined += quarantined

    def add(self, split: str, sample: Any, digest: str, measured: Mapping[str, Any]) -> None:
        size = sum(len(data) for data in shards.content(sample).values())
        self.index.append(
            {
                "key": sample.key,
                "label": sample.label,
                "caption_length": None if sample.caption is None else len(sample.caption),
                "hash": digest,
                "source": self.job.origin,
                "split": split,
                "shard": self._name(split),
                "row": len(self.waiting[split]),
                "bytes": size,
                **measured,
            }
        )
        self.waiting[split].append(shards.row_of(sample, digest, self.job.origin))
        self.rows[split] += 1
        self.sizes[split] += size
        self.size[split] += size
        if sample.label is not None:
            self.labels[split][sample.label] += 1
        if len(self.waiting[split]) >= ROWS_PER_SHARD or self.size[split] >= BYTES_PER_SHARD:
            self.flush(split)

    def _name(self, split: str) -> str:
        return f"{split}/part-{self.job.number:05d}-{self.count[split]:03d}.parquet"

    def flush(self, split: str) -> None:
        if rows := self.waiting[split]:
            put = self._put(self._name(split), shards.encoded(rows, self.columns))
            self.shards.append({"name": put.name, "rows": len(rows), "bytes": put.size, "md5": put.digest})
            self.count[split] += 1
            self.waiting[split], self.size[split] = [], 0

    def _put(self, name: str, data: bytes) -> Put:
        stored = self.sink.put(name, data)
        self.stored.append(Put(stored.name, stored.digest, stored.size))
        return self.stored[-1]

    def close(self) -> Written:
        for split in SPLITS:
            self.flush(split)
        number = f"part-{self.job.number:05d}.parquet"
        index = shards.encoded(self.index, shards.index_schema(self.layout.modalities, self.layout.signer is not None))
        self._put(f"index/{number}", index)
        if self.refused:
            self._put(f"broken/{number}", _table(self.refused))
        return Written(
            number=self.job.number,
            origin=self.job.origin,
            stored=self.stored,
            rows=dict(self.rows),
            sizes=dict(self.sizes),
            shards=self.shards,
            labels={split: dict(found) for split, found in self.labels.items() if found},
            broken=len(self.refused) - self.quarantined,
            quarantined=self.quarantined,
            reasons=dict(Counter(row["reason"] for row in self.refused).most_common(_NAMED)),
            named=self.refused[:_NAMED],
            duplicates=self.duplicates,
            index=index,
            hashes=np.array([int(row["hash"][:16], 16) for row in self.index], dtype=np.uint64),
        )


def _table(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa

    return shards.encoded(rows, pa.schema([(name, pa.string()) for name in ("key", "source", "reason")]))


class Whole:
    """What the written parts are together; `parts` in the order of their numbers."""

    def __init__(self, parts: Sequence[Written]) -> None:
        self.parts = list(parts)

    @property
    def read(self) -> int:
        return sum(sum(p.rows.values()) + p.duplicates + p.broken + p.quarantined for p in self.parts)

    def repeated(self, hashes_of: Any) -> dict[int, list[str]]:
        """part number -> content hashes that an earlier part has as well. `hashes_of(number)` gives the whole hashes of a
        part: equal beginnings are only a suspicion."""
        beginnings = np.concatenate([part.hashes for part in self.parts]) if self.parts else np.empty(0, np.uint64)
        owner = np.repeat([p.number for p in self.parts], [len(p.hashes) for p in self.parts])
        _, first, inverse = np.unique(beginnings, return_index=True, return_inverse=True)
        later = np.flatnonzero(first[inverse] != np.arange(len(beginnings)))
        if not len(later):
            return {}
        suspects = {int(value) for value in beginnings[later]}
        seen: set[str] = set()
        found: dict[int, list[str]] = {}
        involved = {int(owner[i]) for i in later} | {int(owner[first[inverse[i]]]) for i in later}
        for number in sorted(involved):
            for digest in hashes_of(number):
                if int(digest[:16], 16) not in suspects:
                    continue
                if digest in seen:
                    found.setdefault(number, []).append(digest)
                seen.add(digest)
        return found

    def classes(self, has_target: bool) -> tuple[list[str], list[str]]:
        """(all classes, those of the target): the target's come first."""
        labels: dict[str, set[str]] = {split: set() for split in SPLITS}
        for part in self.parts:
            for split, found in part.labels.items():
                labels[split] |= set(found)
        first = labels["target"] | (labels["held_out"] if has_target else set())
        classes = sorted(first) + sorted((labels["train"] | labels["held_out"]) - first)
        return classes, sorted(first) if has_target else classes

    def refused(self) -> list[dict[str, str]]:
        """The first of what is broken or in quarantine."""
        return [row for part in self.parts for row in part.named][:_NAMED]

    def check(self, layout: Layout, max_broken: float, asked_for: int = 0) -> None:
        """Raises DataError when more than the share `max_broken` is unusable, or a split is empty. `asked_for` samples were
        left out because the recipe wants it (near-duplicates)."""
        lost = sum(part.broken + part.quarantined for part in self.parts) - asked_for
        if lost > max_broken * self.read:
            first = self.refused()
            named = "; ".join(f"{b['key']}: {b['reason']}" for b in first[:5]) + ("; ..." if lost > 5 else "")
            raise DataError(
                f"{lost} of {self.read} samples are broken, more than dataset.max_broken = {max_broken:g} allows "
                f"({named}); mend or remove them, or raise dataset.max_broken"
            )
        counts = self.counts()
        for name in SPLITS if layout.has_target else ("train", "held_out"):
            if not counts.get(name):
                raise DataError(
                    f"the split '{name}' is empty: {sum(counts.values())} different samples were read, of which "
                    f"dataset.held_out = {layout.held_out:g} are held out, chosen by a hash of their content; give more "
                    "samples, or change dataset.held_out"
                )

    def counts(self) -> dict[str, int]:
        """split -> rows, of the splits that have any."""
        found = {split: sum(part.rows.get(split, 0) for part in self.parts) for split in SPLITS}
        return {split: count for split, count in found.items() if count}

    def summary(self, layout: Layout, image: ImageFormat | None) -> dict[str, Any]:
        """`dataset.json`."""
        classes, target_classes = self.classes(layout.has_target)
        splits = {
            split: {
                "rows": rows,
                "shards": sum(s["name"].startswith(f"{split}/") for part in self.parts for s in part.shards),
                "bytes": sum(part.sizes.get(split, 0) for part in self.parts),
            }
            for split, rows in self.counts().items()
        }
        return {
            "format": shards.FORMAT,
            "modalities": list(layout.modalities),
            "image": None if image is None else {"size": image.size, "channels": image.channels},
            "classes": classes,
            "target_classes": target_classes,
            "splits": splits,
            "read": self.read,
            "broken": sum(part.broken for part in self.parts),
            "quarantined": sum(part.quarantined for part in self.parts),
            "refused": self.refused(),
            "duplicates": sum(part.duplicates for part in self.parts),
        }

    def reasons(self) -> list[dict[str, Any]]:
        """Why samples were refused, the most frequent reasons first."""
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(part.reasons)
        return [{"reason": reason, "samples": count} for reason, count in total.most_common(_NAMED)]

    def stored(self) -> Iterable[Put]:
        return (put for part in self.parts for put in part.stored)
