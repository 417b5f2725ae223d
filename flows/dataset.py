"""The data set: sources, read, split by content, written as Parquet shards, validated. Nothing invalid goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prefect import flow

from flows.context import StageContext, StageFailed
from flows.pipeline import label, walk
from flows.request import Request

if TYPE_CHECKING:
    from components.interfaces import ImageFormat
    from infra.validation import Finding


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
    suite = Path(shards.__file__).parent / "expectations" / f"{section['expectations']}.yaml"
    if not suite.is_file():
        there = ", ".join(sorted(path.stem for path in suite.parent.glob("*.yaml")))
        raise StageFailed(f"dataset.expectations: there is no suite '{section['expectations']}' (there are: {there})")
    written = shards.write(
        ctx.output,
        _counted(ctx, source.samples(), "read"),
        target.samples() if target else None,
        ImageFormat(**section["image"]),
        section["held_out"],
        section["max_broken"],
    )
    frame = _frame(ctx.output)
    ctx.progress(0, 1, "validating")
    findings = validation.validate(frame, yamlio.load(suite))
    rows = [finding.row() for finding in findings]
    write_json_atomic(ctx.output / "validation.json", rows)
    ctx.table("validation", rows)
    ctx.table("broken", written.broken)
    ctx.table("classes", _classes(frame))
    failed = [f for f in findings if not f.passed]
    stopping = [f for f in failed if f.severity == "critical"]
    if stopping:
        lines = [f"  {f.expectation}({f.column}): {_evidence(f)}" for f in stopping]
        raise StageFailed("the data set does not meet its expectations:\n" + "\n".join(lines))
    ctx.figure("examples", _examples(ctx.output, ImageFormat(**section["image"])))
    return {
        **{f"rows.{name}": count for name, count in written.rows.items()},
        "classes": len(written.classes),
        "broken": len(written.broken),
        "duplicates": written.duplicates,
        "expectations": len(findings),
        "warnings": len(failed),
    }


def _evidence(finding: Finding) -> str:
    if not finding.examples:
        return f"observed {finding.observed}"
    return f"{finding.unexpected} of the samples, e.g. {', '.join(finding.examples[:5])} (values {finding.observed})"


def _counted(ctx: StageContext, samples: Any, note: str) -> Any:
    for count, sample in enumerate(samples):
        if count % 500 == 0:
            ctx.progress(count, 0, f"{note} {count:,} samples")
        yield sample


def _frame(folder: Path) -> Any:
    """One row a sample: what the expectations look at."""
    from concurrent.futures import ThreadPoolExecutor

    import pandas as pd

    from components.data import shards

    rows = []
    with ThreadPoolExecutor() as pool:
        for split in shards.SPLITS:
            for group in shards.row_groups(folder, split):
                for row, facts in zip(group, pool.map(_facts, group, chunksize=64), strict=True):
                    rows.append({**{k: row[k] for k in ("key", "label", "hash", "source")}, "split": split, **facts})
    columns = ["key", "label", "hash", "source", "split", "width", "height", "aspect", "contrast"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["splits_of_content"] = frame.groupby("hash")["split"].transform("nunique")
    return frame


def _facts(row: dict[str, Any]) -> dict[str, float]:
    """Pixels, aspect, and the standard deviation of brightness (0..127.5); nothing for what is not a picture."""
    import io

    from PIL import Image

    from components.data.images import check, decode
    from components.interfaces import ImageFormat

    data = row["image"]["bytes"]
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        contrast = float(decode(data, ImageFormat(64, 1)).std())
    except Exception:  # a source of one's own may not have looked, and Pillow's decoders raise nearly anything
        if check(data) is None:
            raise
        return {}
    return {"width": width, "height": height, "aspect": width / height, "contrast": contrast}


def _classes(frame: Any) -> list[dict[str, Any]]:
    counts = frame.fillna({"label": "(none)"}).groupby(["label", "split"]).size().unstack(fill_value=0)
    return [{"class": name, **{k: int(v) for k, v in row.items()}} for name, row in counts.iterrows()]


def _examples(folder: Path, image: ImageFormat) -> bytes:
    """Twenty evenly spaced pictures of each split, one row a split, as networks see them."""
    from components.data import shards
    from components.data.batches import to_float
    from components.data.images import decode
    from flows import pictures

    shown = []
    for split, about in shards.describe(folder)["splits"].items():
        wanted = set(np.linspace(0, about["rows"] - 1, 20).astype(int).tolist())
        found = (row for number, row in enumerate(shards.rows(folder, split)) if number in wanted)
        shown.append(to_float(np.stack([decode(row["image"]["bytes"], image) for row in found])))
    return pictures.rows(shown)


@flow(name="dataset", flow_run_name=label)
def dataset(request: Request) -> dict[str, dict[str, float]]:
    """Make and validate the data set of a recipe."""
    return walk(request, until="dataset")
