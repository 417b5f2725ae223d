"""The data set: sources, read, split by content, written as Parquet shards, validated. Nothing invalid goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow

from flows.context import StageContext, StageFailed
from flows.pipeline import label, walk
from flows.request import Request


def body(ctx: StageContext) -> dict[str, float]:
    """Writes `outputs/dataset`: shards, dataset.json, validation.json, example pictures."""
    from components import registry, yamlio
    from components.data import shards
    from components.interfaces import ImageFormat, Source
    from infra import validation
    from infra.storage import write_json_atomic

    section = ctx.section("dataset")
    source = registry.build(Source, section["source"])
    target = registry.build(Source, section["target"]) if section["target"] else None
    written = shards.write(
        ctx.output,
        _counted(ctx, source.samples(), "read"),
        target and target.samples(),
        ImageFormat(**section["image"]),
        section["held_out"],
        section["max_broken"],
    )
    suite = Path(shards.__file__).parent / "expectations" / f"{section['expectations']}.yaml"
    if not suite.is_file():
        raise StageFailed(f"dataset.expectations: there is no suite '{section['expectations']}' ({suite})")
    frame = _frame(ctx.output)
    ctx.progress(0, 1, "validating")
    findings = validation.validate(frame, yamlio.load(suite))
    rows = [finding.row() for finding in findings]
    write_json_atomic(ctx.output / "validation.json", rows)
    ctx.table("validation", rows)
    ctx.table("broken", written.broken)
    ctx.table("classes", _classes(frame))
    ctx.figure("examples", _examples(ctx.output))
    failed = [f for f in findings if not f.passed]
    stopping = [f for f in failed if f.severity == "critical"]
    if stopping:
        lines = [f"  {f.expectation}({f.column}): {f.unexpected} rows, e.g. {', '.join(f.examples[:5]) or f.observed}" for f in stopping]
        raise StageFailed("the data set does not meet its expectations:\n" + "\n".join(lines))
    return {
        **{f"rows.{name}": count for name, count in written.rows.items()},
        "classes": len(written.classes),
        "broken": len(written.broken),
        "duplicates": written.duplicates,
        "expectations": len(findings),
        "warnings": len(failed),
    }


def _counted(ctx: StageContext, samples: Any, note: str) -> Any:
    for count, sample in enumerate(samples):
        if count % 500 == 0:
            ctx.progress(count, 0, f"{note} {count:,} samples")
        yield sample


def _frame(folder: Path) -> Any:
    """One row a sample: what the expectations look at."""
    import io

    import pandas as pd
    from components.data import shards
    from PIL import Image

    rows = []
    for split in shards.SPLITS:
        for row in shards.rows(folder, split):
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                width, height, channels = *image.size, len(image.getbands())
                contrast = float(np.asarray(image.convert("L"), dtype=np.float32).std())
            facts = {"width": width, "height": height, "channels": channels, "aspect": width / height, "contrast": contrast}
            rows.append({**{k: row[k] for k in ("key", "label", "hash", "source")}, "split": split, **facts})
    columns = ["key", "label", "hash", "source", "split", "width", "height", "channels", "aspect", "contrast"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["splits_of_content"] = frame.groupby("hash")["split"].transform("nunique")
    return frame


def _classes(frame: Any) -> list[dict[str, Any]]:
    counts = frame.fillna({"label": "(none)"}).groupby(["label", "split"]).size().unstack(fill_value=0)
    return [{"class": name, **{k: int(v) for k, v in row.items()}} for name, row in counts.iterrows()]


def _examples(folder: Path) -> bytes:
    """Twenty evenly spaced pictures of each split, one row a split."""
    from components.data import images, shards

    rows = []
    for split in shards.SPLITS:
        loaded = shards.load_split(folder, split).images
        if len(loaded):
            rows.append(loaded[np.linspace(0, len(loaded) - 1, 20).astype(int)])
    return images.grid(rows, scale=max(1, 64 // rows[0].shape[-1]))


@flow(name="dataset", flow_run_name=label)
def dataset(request: Request) -> dict[str, dict[str, float]]:
    """Make and validate the data set of a recipe."""
    return walk(request, until="dataset")
