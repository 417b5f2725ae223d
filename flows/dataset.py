"""The data set: sources, read in parts side by side, split by content, written as shards, validated. Nothing invalid goes on.

1. Every part of every source is written by itself, straight into the store (`components.data.writing`).
2. Parts with samples that an earlier part has, too, are written again without them.
3. The expectations are checked on the index. `critical` stops, `warning` is reported, and rows that fail a `quarantine`
   are taken out: their parts are written again.
Finished parts are kept in the work folder, so that an interrupted stage goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from flows.context import StageContext
from flows.pipeline import label, walk
from flows.request import Request

if TYPE_CHECKING:
    import pandas as pd

    from components.data.writing import Job, Layout, Whole, Written
    from components.interfaces import ImageFormat
    from infra.validation import Finding

_EXAMPLES = 20  # of each split in the figure
_ROWS = 1000  # of a table


def body(ctx: StageContext) -> dict[str, float]:
    """Writes `outputs/dataset`: shards, index, dataset.json, validation.json, tables, example pictures, data.html."""
    from components.interfaces import ImageFormat
    from flows.data_page import page
    from flows.validation import judged, load_suite
    from infra.storage import write_json_atomic

    section = ctx.section("dataset")
    suite = load_suite(section["expectations"])
    image = ImageFormat(**section["image"]) if section["image"] else None
    writer = _Writer(ctx, section)
    whole = writer.write()
    whole.check(writer.layout, section["max_broken"])
    near = writer.near_duplicates()
    frame = writer.frame(near)
    ctx.progress(0, 1, "validating")
    findings = _validated(ctx, frame, suite)
    unwanted = near if writer.near and writer.near["drop"] else {}
    if writer.drop(_quarantined(findings, frame), unwanted):
        whole = writer.write()
        frame = writer.frame(near)
        whole.check(writer.layout, section["max_broken"], asked_for=len({digest for _, digest in unwanted.values()}))
    about = whole.summary(writer.layout, image)
    kept = [f for f in findings if f.expectation != "no_drift"]  # the champion of today is no property of the data
    rows = [finding.row() for finding in kept]
    write_json_atomic(ctx.output / "dataset.json", about)
    write_json_atomic(ctx.output / "validation.json", rows)
    write_json_atomic(ctx.work / "drift.json", [f.row() for f in findings if f.expectation == "no_drift"])
    ctx.table("validation", rows)
    ctx.table("broken", whole.refused())
    ctx.table("reasons", whole.reasons())
    ctx.table("classes", _classes(frame)[:_ROWS])
    ctx.table("shards", [shard for part in whole.parts for shard in part.shards][:_ROWS])
    if near:
        ctx.table("near_duplicates", [{"key": key, "like": first} for key, (first, _) in near.items()][:_ROWS])
    warnings = judged(findings, "the data set")
    ctx.keep(list(whole.stored()))
    if image is not None:
        ctx.figure("examples", _examples(writer, frame, image))
    (ctx.output / "data.html").write_bytes(page(ctx.written(), kept, ctx.recipe["system"]))
    return {
        **{f"rows.{name}": split["rows"] for name, split in about["splits"].items()},
        "classes": len(about["classes"]),
        "parts": len(whole.parts),
        "bytes": sum(split["bytes"] for split in about["splits"].values()),
        "broken": about["broken"],
        "quarantined": about["quarantined"],
        "duplicates": about["duplicates"],
        "near_duplicates": len(near),
        "expectations": len(findings),
        "warnings": warnings,
    }


class _Writer:
    """The parts of this data set: planned once, written as often as something has to be left out."""

    def __init__(self, ctx: StageContext, section: Mapping[str, Any]) -> None:
        from components import registry
        from components.data.near_duplicates import Signer
        from components.data.writing import Job, Layout
        from components.interfaces import MODALITIES, Source

        self.ctx = ctx
        origins = {name: section[name] for name in ("target", "source") if section[name]}
        sources = {name: registry.build(Source, spec) for name, spec in origins.items()}
        has = {modality for source in sources.values() for modality in source.modalities}
        near = section["near_duplicates"]
        self.near = near if near and "text" in has else None
        self.layout: Layout = Layout(
            modalities=tuple(modality for modality in MODALITIES if modality in has),
            held_out=section["held_out"],
            has_target="target" in sources,
            signer=Signer.of(self.near) if self.near else None,
        )
        parts = [(name, part) for name, source in sources.items() for part in source.parts()]
        self.jobs: list[Job] = [
            Job(number, "target" if name == "target" else "source", origins[name], part)
            for number, (name, part) in enumerate(parts)
        ]
        self.drops: dict[int, dict[str, str | None]] = {}
        self.parts: dict[int, Written] = {}

    def write(self) -> Whole:
        """Every part as it has to be now, and again those that repeat what is in an earlier one."""
        from components.data.writing import Whole

        self._write(self.jobs)
        whole = Whole([self.parts[job.number] for job in self.jobs])
        repeated = whole.repeated(self._hashes)
        for number, digests in repeated.items():
            self.drops.setdefault(number, {}).update(dict.fromkeys(digests))
        if repeated:
            self._write([job for job in self.jobs if job.number in repeated])
        return Whole([self.parts[job.number] for job in self.jobs])

    def drop(self, quarantined: Mapping[str, str], near: Mapping[str, tuple[str, str]]) -> bool:
        """Samples to be left out from now on: content hash -> reason, and near-duplicates."""
        wanted: dict[str, str | None] = {
            **quarantined,
            **{digest: f"near-duplicate of {first}" for first, digest in near.values()},
        }
        for number in self.parts if wanted else ():
            if found := {digest: wanted[digest] for digest in self._hashes(number) if digest in wanted}:
                self.drops.setdefault(number, {}).update(found)
        return bool(wanted)

    def _write(self, jobs: Iterable[Job]) -> None:
        from dataclasses import replace

        from components.data.writing import write_part

        todo: list[Job] = []
        for job in jobs:
            job = replace(job, drop=self.drops.get(job.number, {}))
            kept = self._kept(job)
            if kept is None:
                todo.append(job)
            else:
                self.parts[job.number] = kept
        read = 0
        for done, (index, written) in enumerate(
            self.ctx.each(partial(write_part, layout=self.layout, sink=self.ctx.sink), todo), 1
        ):
            self._keep(todo[index], written)
            self.parts[written.number] = written
            read += sum(written.rows.values()) + written.broken + written.duplicates
            self.ctx.progress(done, len(todo), f"parts, {read:,} samples")

    def _folder(self, job: Job) -> Path:
        drop = json.dumps(sorted(job.drop.items()))
        return self.ctx.work / "parts" / f"{job.number:05d}-{hashlib.sha256(drop.encode()).hexdigest()[:12]}"

    def _kept(self, job: Job) -> Written | None:
        """What an interrupted attempt has written of this part."""
        import numpy as np

        from components.data.writing import Written

        folder = self._folder(job)
        if self.ctx.store is None or not (folder / "about.json").is_file():  # without a store the shards went with it
            return None
        about = json.loads((folder / "about.json").read_text())
        if self.ctx.store.missing(put["digest"] for put in about["stored"]):
            return None
        return Written.of(about, (folder / "index.parquet").read_bytes(), np.load(folder / "hashes.npy"))

    def _keep(self, job: Job, written: Written) -> None:
        import io

        import numpy as np

        from infra.storage import write_bytes_atomic

        folder, buffer = self._folder(job), io.BytesIO()
        np.save(buffer, written.hashes)
        write_bytes_atomic(folder / "hashes.npy", buffer.getvalue())
        write_bytes_atomic(folder / "index.parquet", written.index)
        about = json.dumps(written.about())  # in the order of its keys: tables are made of it
        write_bytes_atomic(folder / "about.json", about.encode())  # last: it says that the others are there

    def _index(self, number: int, columns: list[str] | None = None) -> Any:
        import io

        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(self.parts[number].index), columns=columns)

    def _hashes(self, number: int) -> list[str]:
        return self._index(number, ["hash"]).column("hash").to_pylist()

    def near_duplicates(self) -> dict[str, tuple[str, str]]:
        """key -> (key of the first text like it, own content hash); empty where they are not looked for."""
        if not self.near or self.layout.signer is None:
            return {}
        import numpy as np

        from components.data.near_duplicates import near_duplicates

        keys: list[str] = []
        hashes: list[str] = []
        signatures = []
        for job in self.jobs:
            for row in self._index(job.number, ["key", "hash", "signature"]).to_pylist():
                if row["signature"] is not None:  # a sample without text
                    keys.append(row["key"])
                    hashes.append(row["hash"])
                    signatures.append(self.layout.signer.read(row["signature"]))
        self.ctx.progress(0, 1, f"near-duplicates among {len(keys):,} texts")
        first = near_duplicates(np.stack(signatures), self.near["threshold"]).tolist() if signatures else []
        return {keys[i]: (keys[j], hashes[i]) for i, j in enumerate(first) if j != i}

    def frame(self, near: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
        """One row a sample: what the expectations look at."""
        import pandas as pd

        tables = [self._index(job.number) for job in self.jobs]
        frame = pd.concat(
            [t.drop_columns("signature" if "signature" in t.column_names else []).to_pandas() for t in tables]
        )
        frame["splits_of_content"] = frame.groupby("hash")["split"].transform("nunique")
        if self.near:
            frame["near_duplicate_of"] = frame["key"].map({key: first for key, (first, _) in near.items()})
        return frame.reset_index(drop=True)

    def shard(self, name: str) -> Path:
        """A local file with the content of a shard that was just written."""
        digest = next(put.digest for part in self.parts.values() for put in part.stored if put.name == name)
        if self.ctx.store is None:
            return self.ctx.output / name
        return self.ctx.store.fetch(digest)


def _validated(ctx: StageContext, frame: pd.DataFrame, suite: list[dict[str, Any]]) -> list[Finding]:
    from infra import validation

    reference = None
    if any(entry["type"] == "expect_no_drift" for entry in suite) and ctx.store is not None:
        from flows.validation import reference_frame
        from infra.settings import Settings

        reference = reference_frame(Settings(), ctx.recipe["system"])
    return validation.validate(frame, suite, reference=reference)


def _quarantined(findings: Iterable[Finding], frame: pd.DataFrame) -> dict[str, str]:
    """content hash -> the expectation that the sample fails."""
    found: dict[str, str] = {}
    for finding in findings:
        if finding.severity == "quarantine" and not finding.passed:
            reason = f"quarantine: {finding.expectation}({finding.column})"
            found |= dict.fromkeys(frame["hash"].iloc[finding.rows], reason)
    return found


def _classes(frame: pd.DataFrame) -> list[dict[str, Any]]:
    counts = frame.fillna({"label": "(none)"}).groupby(["label", "split"]).size().unstack(fill_value=0)
    return [{"class": name, **{k: int(v) for k, v in row.items()}} for name, row in counts.iterrows()]


def _examples(writer: _Writer, frame: pd.DataFrame, image: ImageFormat) -> bytes:
    """Twenty evenly spaced pictures of each split, one row a split, as networks see them."""
    import numpy as np
    import pyarrow.parquet as pq

    from components.data.batches import to_float
    from components.data.images import decode
    from components.data.shards import SPLITS
    from flows import pictures

    shown = []
    for split in SPLITS:
        mine = frame[frame["split"] == split]
        if not len(mine):
            continue
        chosen = mine.iloc[np.unique(np.linspace(0, len(mine) - 1, _EXAMPLES).astype(int))]
        found = []
        for name, places in chosen.groupby("shard", sort=False)["row"]:
            column = pq.read_table(writer.shard(str(name)), columns=["image"]).column("image")
            found += [column[int(place)].as_py()["bytes"] for place in places]
        shown.append(to_float(np.stack([decode(data, image) for data in found])))
    return pictures.rows(shown)


@flow(name="dataset", flow_run_name=label)
def dataset(request: Request) -> dict[str, dict[str, float]]:
    """Make and validate the data set of a recipe."""
    return walk(request, until="dataset")
