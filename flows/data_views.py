"""`tessera data show | diff`: what a data set is, and what changed between two, from the index alone.

No sample is read but the few examples that are shown.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from components.data.files import Folder
from flows import outputs, runs
from flows.terminal import console, number, table
from infra.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from components.interfaces import Files

_EXAMPLES = 6  # of each split
_WIDE = 28  # letters across of a picture in the terminal
_NAMED = 5  # samples that a difference names
_QUANTILES = (0.05, 0.5, 0.95)


class DataViewError(ValueError):
    """Something that is not a data set; the message says what to do."""

    user_error = True


def open_data(settings: Settings, what: str) -> Files:
    """The data set of a run, or the one in a folder."""
    folder = Path(what)
    if (folder / "dataset.json").is_file():
        return Folder(folder)
    if folder.is_dir() and not (folder / "recipe.yaml").is_file():
        raise DataViewError(
            f"{what} holds no data set: dataset.json is missing; `tessera run tokenizer --data {what}` makes one of your files"
        )
    return outputs.files(runs.find(settings.project, what), "dataset")


def show(settings: Settings, what: str, html: Path | None) -> None:
    """What a data set is, on the terminal, and as a page where a file is named."""
    from components.data import shards

    files = open_data(settings, what)
    about = shards.describe(files)
    image = about["image"]
    seen = f", as networks see them {image['size']} x {image['size']} x {image['channels']}" if image else ""
    console.print(f"[bold]{escape(what)}[/]  {', '.join(about['modalities'])}{seen}")
    rows = [[split, f"{s['rows']:,}", s["shards"], _size(s["bytes"])] for split, s in about["splits"].items()]
    table("", ["split", "samples", "shards", "size"], rows)
    if about["classes"]:
        some = ", ".join(about["classes"][:12]) + (", ..." if len(about["classes"]) > 12 else "")
        console.print(f"{len(about['classes'])} classes: {escape(some)}")
    console.print(
        f"{about['read']:,} read, {about['duplicates']:,} duplicates left out, {about['broken']:,} broken, "
        f"{about['quarantined']:,} in quarantine"
    )
    for reason, count in _reasons(files)[:_NAMED]:
        console.print(f"  {count:>6,}  {escape(reason)}")
    frame = _frame(files)
    facts = [name for name in _facts(frame) if frame[name].notna().any()]
    quantiles = [[name, *(number(float(frame[name].quantile(q))) for q in _QUANTILES)] for name in facts]
    if quantiles:
        table("", ["measured", *(f"{q:.0%}" for q in _QUANTILES)], quantiles)
    _examples(files, about)
    if html is not None:
        from flows.data_page import page
        from infra.storage import write_bytes_atomic

        write_bytes_atomic(html, page(files, name=what))
        console.print(f"page     {html}", soft_wrap=True)


def _examples(files: Files, about: dict[str, Any]) -> None:
    """A few samples of each split as the terminal can show them: pictures in half blocks, the beginning of a text, the
    envelope of a sound."""
    import pyarrow.parquet as pq

    from components.data import shards

    for split in about["splits"]:
        name = shards.shard_names(files, split)[0]
        rows = next(pq.ParquetFile(files.path(name)).iter_batches(batch_size=_EXAMPLES)).to_pylist()
        console.print(f"\n[bold]{split}[/]  " + escape("  ".join(f"{r['key']}" for r in rows[:_NAMED])))
        pictures = [row["image"]["bytes"] for row in rows if row.get("image")]
        if pictures and console.is_terminal:
            console.print(_drawn(pictures))
        for row in rows:
            if row.get("text"):
                console.print("  " + escape(" ".join(row["text"].split())[:100]))
            elif row.get("audio"):
                console.print("  " + _envelope(row["audio"]["bytes"]))


def _drawn(pictures: list[bytes]) -> Any:
    """Pictures side by side; each letter is two pixels, the upper one its colour, the lower one its ground."""
    import numpy as np
    from rich.text import Text

    from components.data.images import decode
    from components.interfaces import ImageFormat

    across = max(8, min(_WIDE, console.width // max(len(pictures), 1) - 2))
    shown = np.concatenate(
        [np.pad(decode(data, ImageFormat(across, 3)), ((0, 0), (0, across % 2), (0, 2))) for data in pictures], axis=2
    )
    text = Text()
    for top in range(0, shown.shape[1] - 1, 2):
        for x in range(shown.shape[2]):
            upper, lower = (tuple(int(v) for v in shown[:, top + i, x]) for i in (0, 1))
            text.append("▀", style=f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})")
        text.append("\n")
    return text


def _envelope(data: bytes) -> str:
    """The loudness of a sound over its length."""
    import numpy as np

    from components.data.audio import decode

    samples = np.abs(decode(data, 8000)).max(axis=0)
    parts = [float(part.max()) if len(part) else 0.0 for part in np.array_split(samples, 60)]
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, round(8 * value))] for value in parts)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _reasons(files: Files) -> list[tuple[str, int]]:
    """Why samples were refused, the most frequent reasons first."""
    if "tables/reasons.json" not in files.names():
        return []
    rows = json.loads(files.path("tables/reasons.json").read_text())
    return [(row["reason"], row["samples"]) for row in rows]


def _frame(files: Files) -> pd.DataFrame:
    """The index without what only serves machines."""
    import pandas as pd

    from components.data import shards

    parts = [
        part.drop_columns([name for name in ("signature",) if name in part.column_names]).to_pandas()
        for part in shards.index(files)
    ]
    return pd.concat(parts, ignore_index=True)


def _facts(frame: pd.DataFrame) -> list[str]:
    """The columns of numbers that were measured of samples."""
    import pandas as pd

    return [name for name in frame.columns if name != "row" and pd.api.types.is_numeric_dtype(frame[name])]


# ---------------------------------------------------------------------------------------------------- differences


def compare(files_a: Files, files_b: Files) -> dict[str, Any]:
    """What changed from one data set to another; samples are the same when their content is."""
    from infra.expectations import drift

    a, b = _frame(files_a), _frame(files_b)
    both = a.merge(b, on="hash", suffixes=("_a", "_b"))
    moved = both[both["split_a"] != both["split_b"]]
    relabelled = both[both["label_a"].fillna("") != both["label_b"].fillna("")]
    labels = {side: Counter(frame["label"].fillna("(none)")) for side, frame in (("a", a), ("b", b))}
    changed = {
        name: [labels["a"].get(name, 0), labels["b"].get(name, 0)]
        for name in sorted(labels["a"] | labels["b"])
        if labels["a"].get(name, 0) != labels["b"].get(name, 0)
    }
    facts = [name for name in _facts(a) if name in b.columns and a[name].notna().any() and b[name].notna().any()]
    reasons = {side: dict(_reasons(files)) for side, files in (("a", files_a), ("b", files_b))}
    return {
        "rows": {"a": len(a), "b": len(b), "kept": len(both)},
        "added": _keys(b[~b["hash"].isin(a["hash"])]["key"]),
        "removed": _keys(a[~a["hash"].isin(b["hash"])]["key"]),
        "moved": _keys(moved["key_b"] + ": " + moved["split_a"] + " -> " + moved["split_b"]),
        "relabelled": _keys(
            relabelled["key_b"] + ": " + relabelled["label_a"].fillna("-") + " -> " + relabelled["label_b"].fillna("-")
        ),
        "splits": {
            split: [int((a["split"] == split).sum()), int((b["split"] == split).sum())]
            for split in dict.fromkeys([*a["split"], *b["split"]])
        },
        "labels": changed,
        "facts": {
            name: {"a": float(a[name].median()), "b": float(b[name].median()), "psi": drift(a[name], b[name]).psi}
            for name in facts
        },
        "new_reasons": sorted(set(reasons["b"]) - set(reasons["a"])),
    }


def _keys(column: Any) -> dict[str, Any]:
    return {"count": len(column), "some": [str(key) for key in column.head(_NAMED)]}


def diff(settings: Settings, before: str, after: str, as_json: bool) -> None:
    """Prints what changed between two data sets."""
    found = compare(open_data(settings, before), open_data(settings, after))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    rows = found["rows"]
    console.print(f"{rows['a']:,} -> {rows['b']:,} samples, {rows['kept']:,} of them the same")
    for what in ("added", "removed", "moved", "relabelled"):
        if found[what]["count"]:
            some = "; ".join(found[what]["some"])
            more = "; ..." if found[what]["count"] > _NAMED else ""
            console.print(f"  {what:<11}{found[what]['count']:>7,}  {escape(some + more)}")
    if (
        found["rows"]["kept"] == rows["a"] == rows["b"]
        and not found["moved"]["count"]
        and not found["relabelled"]["count"]
    ):
        console.print("the samples are the same")
    table("", ["split", before, after], [[split, *counts] for split, counts in found["splits"].items()])
    if found["labels"]:
        shown = sorted(found["labels"].items(), key=lambda item: -abs(item[1][0] - item[1][1]))[:20]
        table("", ["class", before, after], [[name, *counts] for name, counts in shown])
    drifted = sorted(found["facts"].items(), key=lambda item: -item[1]["psi"])
    table(
        "",
        ["measured (median)", before, after, "PSI"],
        [[name, number(fact["a"]), number(fact["b"]), f"{fact['psi']:.3f}"] for name, fact in drifted],
    )
    for reason in found["new_reasons"]:
        console.print(f"new reason to refuse samples: {escape(reason)}")
