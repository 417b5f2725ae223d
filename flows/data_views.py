"""`tessera data show | diff`: what a data set is, and what changed between two, from the index alone.

No sample is read but the few that are shown: of a data set in the store, the first shard of each split is fetched.
`flows.data_index` says what the index holds, `flows.data_terminal` how a sample looks, `flows.data_page` makes the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from components import yamlio
from components.data.files import Folder
from components.registry import nearest
from flows import data_index, outputs, runs
from flows.data_index import NAMED, QUANTILES, DataViewError
from flows.data_terminal import content, drawn, line
from flows.terminal import console, number, table
from infra.settings import Settings

if TYPE_CHECKING:
    from components.interfaces import Files

_EXAMPLES = 6  # of each split
_MOST = 20  # classes
_REASONS = 10


def open_data(settings: Settings, what: str) -> Files:
    """The data set in a folder, or that of a run by its name or folder. Raises DataViewError, OutputError."""
    run = _run(settings, what)
    return Folder(Path(what)) if run is None else outputs.files(run, "dataset")


def _run(settings: Settings, what: str) -> Path | None:
    """The run that `what` names; None where it is the folder of a data set."""
    folder, named = Path(what), settings.runs / what.rstrip("/")
    if (folder / "dataset.json").is_file():
        return None
    for run in (folder, named):
        if (run / "recipe.yaml").is_file() and (run / "dvc.yaml").is_file():
            return run.resolve()
    if folder.is_dir():
        raise DataViewError(
            f"{what} holds no data set: dataset.json is missing; `tessera run tokenizer --data {what}` makes one of your files"
        )
    there = [run.name for run in runs.all_runs(settings.project)]
    raise DataViewError(
        f"there is no data set '{what}'{nearest(Path(what).name, there)}; expected the name of a run (`tessera runs` lists "
        "them) or a folder with a dataset.json"
    )


def show(settings: Settings, what: str, html: Path | None) -> None:
    """What a data set is, on the terminal, and as a page where a file is named. Raises DataViewError, OutputError."""
    from components.data import shards
    from flows.data_page import page, size
    from infra.storage import write_bytes_atomic

    run, files = _run(settings, what), open_data(settings, what)
    about = shards.describe(files)
    console.print(f"[bold]{escape(what)}[/]  {data_index.what(about)}", soft_wrap=True)
    if run is not None:
        section = yamlio.load(run / "recipe.yaml")["dataset"]
        for origin in (name for name in ("source", "target") if section.get(name)):
            given = [f"{key}: {value}" for key, value in section[origin].items() if value]
            console.print(f"{origin:<8}{escape(', '.join(given))}", soft_wrap=True)
    table(
        "",
        ["split", "samples", "shards", "size"],
        [
            [name, f"{split['rows']:,}", split["shards"], size(split["bytes"])]
            for name, split in about["splits"].items()
        ],
    )
    if about["classes"]:
        labels = data_index.column(files, "label")
        counts = labels.value_counts()
        some = ", ".join(f"{line(name, 30)} {count:,}" for name, count in counts.head(_MOST).items())
        more = (", …" if len(counts) > _MOST else "") + (
            f"; {labels.isna().sum():,} without" if labels.isna().any() else ""
        )
        console.print(f"{len(about['classes'])} classes: {escape(some)}{more}", soft_wrap=True)
    console.print(
        f"{about['read']:,} read, {about['duplicates']:,} duplicates left out, {about['broken']:,} broken, "
        f"{about['quarantined']:,} in quarantine"
    )
    for reason, found in list(data_index.reasons(files).items())[:_REASONS]:
        console.print(f"{found['count']:>8,}  {escape(line(reason))}: {escape(_some(found))}", soft_wrap=True)
    _show_facts(files, about)
    _show_examples(files, about)
    if html is not None:
        write_bytes_atomic(html, page(files, name=what))
        console.print(f"\npage    {html}", soft_wrap=True)


def _show_facts(files: Files, about: Mapping[str, Any]) -> None:
    """What was measured: quantiles of numbers, shares of names."""
    numbers: list[list[object]] = []
    names: list[str] = []
    for name in data_index.facts(about):
        found = data_index.summary(data_index.column(files, name))
        without = f"{found['without']:,}" if found["without"] else ""
        if "shares" in found:
            shares = ", ".join(f"{value} {share:.1%}" for value, share in found["shares"].items())
            names.append(f"{name}  {shares}" + (f"; {without} without" if without else ""))
        elif "mean" in found:
            numbers.append([name, *(number(round(found[q], 4)) for q in ("mean", *QUANTILES)), without])
    table("", ["measured", "mean", *QUANTILES, "without"], numbers)
    for told in names:
        console.print(escape(told), soft_wrap=True)


def _show_examples(files: Files, about: Mapping[str, Any]) -> None:
    """A few samples of each split as the terminal can show them."""
    import numpy as np
    import pyarrow.parquet as pq

    from components.data import shards

    for split in about["splits"]:
        shard = pq.read_table(files.path(shards.shard_names(files, split)[0]))
        rows = shard.take(np.unique(np.linspace(0, len(shard) - 1, _EXAMPLES).astype(int))).to_pylist()
        console.print(f"\n[bold]{split}[/]")
        pictures = [row["image"]["bytes"] for row in rows if row.get("image")]
        if pictures and console.is_terminal and console.color_system in ("truecolor", "256"):
            console.print(drawn(pictures, console.width))
        for row in rows:
            label = f"  ({line(row['label'], 30)})" if row["label"] else ""
            console.print(escape(f"  {line(row['key'], 60)}{label}  {content(row)}".rstrip()), soft_wrap=True)


def _some(found: Mapping[str, Any]) -> str:
    """The samples that {count, some} names."""
    return ", ".join(line(key, 60) for key in found["some"]) + (", …" if found["count"] > NAMED else "")


def diff(settings: Settings, before: str, after: str, as_json: bool) -> None:
    """Prints what changed between two data sets. Raises DataViewError, OutputError."""
    found = data_index.compare(open_data(settings, before), open_data(settings, after))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    rows = found["rows"]
    console.print(f"{rows['a']:,} -> {rows['b']:,} samples, {rows['kept']:,} of them the same")
    if found["what"][0] != found["what"][1]:
        console.print(f"{found['what'][0]} -> {found['what'][1]}")
    changes = [name for name in ("added", "removed", "moved", "relabelled") if found[name]["count"]]
    for name in changes:
        console.print(f"  {name:<11}{found[name]['count']:>7,}  {escape(_some(found[name]))}", soft_wrap=True)
    if not changes:
        console.print("the samples are the same")
    titles = [escape(before), escape(after)]
    table("", ["split", *titles], [[split, *counts] for split, counts in found["splits"].items()])
    if found["labels"]:
        moved = sorted(found["labels"].items(), key=lambda item: -_moved(item[1], rows))[:_MOST]
        cells = [[escape(line(name, 30)), _share(one, rows["a"]), _share(two, rows["b"])] for name, (one, two) in moved]
        table("", ["class", *titles], cells)
    _show_drift(found["facts"], titles)
    console.print(f"broken or in quarantine: {found['refused'][0]:,} -> {found['refused'][1]:,}")
    for reason, new in found["new_reasons"].items():
        console.print(f"{new['count']:>8,}  new: {escape(line(reason))}: {escape(_some(new))}", soft_wrap=True)


def _moved(counts: Sequence[int], rows: Mapping[str, int]) -> float:
    """How much the share of a class has changed."""
    return abs(counts[0] / max(rows["a"], 1) - counts[1] / max(rows["b"], 1))


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / max(of, 1):.1%})"


def _show_drift(facts: Mapping[str, Any], titles: Sequence[str]) -> None:
    """A line for each fact, those that moved most first."""
    cells = []
    for name, fact in sorted(facts.items(), key=lambda item: -item[1]["psi"]):
        little = fact["psi"] <= max(0.1, fact["chance"])  # customary: below 0.1 little, above 0.25 much
        told = "" if little else "much" if fact["psi"] > 0.25 else "some"
        cells.append([name, escape(_told(fact["a"])), escape(_told(fact["b"])), f"{fact['psi']:.3f}", told])
    table("", ["measured: mean (5% to 95%)", *titles, "PSI", "drift"], cells)


def _told(found: Mapping[str, Any]) -> str:
    """A distribution in a cell."""
    if "shares" in found:
        return ", ".join(f"{name} {share:.0%}" for name, share in list(found["shares"].items())[:3])
    if "mean" not in found:
        return "none"
    mean, low, high = (number(round(found[name], 4)) for name in ("mean", "5%", "95%"))
    return mean if low == high == mean else f"{mean} ({low} to {high})"
