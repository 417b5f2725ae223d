"""A data set on one page: what it is, examples, classes, distributions, expectations, and what was left out.

One HTML file with everything in it: no script, no network. Read are dataset.json, the index, the lists of what is broken,
and a few shards for the examples; so the page of a large data set costs little more than that of a small one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows import charts, data_examples
from flows.data_examples import Example
from flows.findings import evidence, lines, summary, verdict
from flows.terminal import number
from infra.validation import Finding

if TYPE_CHECKING:
    import pyarrow as pa

    from components.interfaces import Files

_EXAMPLES = {"image": 22, "text": 6, "audio": 8, "array": 8}  # of each split: whole rows of the page
_CLASSES = 24  # that have a bar of their own
_NAMES = 8  # of a fact that is a name
_FAILING = {"image": 11, "text": 3, "audio": 4, "array": 4}  # samples of an expectation that is not met
_REASONS = 30

_UNITS = {
    "width": "pixels", "height": "pixels", "aspect": "width / height", "contrast": "spread of brightness, 0 to 127.5",
    "mode": "channels as stored", "characters": "", "words": "between spaces", "lines": "", "language": "by rule of thumb",
    "printable": "share of characters", "ascii": "share of characters", "repetition": "share in repeated lines",
    "compression": "compressed size / size", "seconds": "", "rate": "samples a second", "channels": "", "peak": "dBFS",
    "rms": "dBFS", "silence": "share of frames", "clipping": "share of samples", "rows": "first axis",
    "columns": "all other axes", "finite": "share of values", "minimum": "", "maximum": "",
    "bytes": "of a sample", "caption_length": "characters",
}  # fmt: skip


@dataclass(frozen=True)
class Distribution:
    """A fact over the samples: drawn, or its one value where all have the same."""

    name: str
    unit: str
    svg: str
    note: str


def page(files: Files, findings: Sequence[Finding] | None = None, name: str = "Data set") -> bytes:
    """The page of a data set. Without findings: those that were written down when it was made."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    from components.data import shards

    about = shards.describe(files)
    kept = _json(files, "validation.json") or []
    findings = [Finding(**row) for row in kept] if findings is None else findings
    kind, splits = about["modalities"][0], list(about["splits"])
    index = _index(files, about["modalities"])
    measured = _distributions(index, splits, about["modalities"])
    environment = Environment(loader=PackageLoader("flows", "templates"), autoescape=select_autoescape(default=True))
    environment.filters["number"] = number
    environment.filters["size"] = size
    failed = [f for f in findings if verdict(f) not in ("passed", "not applicable")]
    return (
        environment.get_template("data.html.j2")
        .render(
            name=name,
            about=about,
            splits=splits,
            kinds=", ".join(_kind(modality, about) for modality in about["modalities"]),
            headline=_headline(about, findings),
            examples={
                split: data_examples.of_split(files, split, _EXAMPLES[kind], about["splits"][split]["bytes"])
                for split in splits
            },
            classes=_classes(index, splits),
            distributions=[d for d in measured if d.svg],
            constants=[d for d in measured if not d.svg],
            failed=_shown(files, failed, _FAILING[kind]),
            others=[(*line, evidence(line[2])) for line in lines([f for f in findings if f not in failed])],
            summary=summary(findings),
            reasons=_reasons(files),
            alike=(_json(files, "tables/near_duplicates.json") or [])[:_REASONS],
        )
        .encode()
    )


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _json(files: Files, name: str) -> Any:
    return json.loads(files.path(name).read_text()) if name in files.names() else None


def _kind(modality: str, about: Mapping[str, Any]) -> str:
    """A modality in words, with how networks see it."""
    words = {"image": "pictures", "text": "texts", "audio": "sounds", "array": "numeric arrays"}[modality]
    if modality == "image" and about["image"]:
        image = about["image"]
        return f"{words}, seen as {image['size']} x {image['size']} in {'grey' if image['channels'] == 1 else 'colour'}"
    return words


def _headline(about: Mapping[str, Any], findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    """(value, what it is, "" | pass | fail): what a colleague asks for first."""
    splits = about["splits"].values()
    met, checked = sum(f.passed for f in findings), sum(not f.not_applicable for f in findings)
    cards = [
        (number(sum(split["rows"] for split in splits)), "samples", ""),
        (size(sum(split["bytes"] for split in splits)), "of data", ""),
        *([(number(len(about["classes"])), "classes", "")] if about["classes"] else []),
        (f"{met}/{checked}", "expectations met", "pass" if met == checked else "fail"),
        *((number(about[what]), text, "") for what, text in _LEFT_OUT.items() if about[what]),
    ]
    return cards if findings else [card for card in cards if card[1] != "expectations met"]


_LEFT_OUT = {"duplicates": "duplicates left out", "broken": "could not be read", "quarantined": "in quarantine"}


# ------------------------------------------------------------------------------------------------------ distributions


def _index(files: Files, modalities: Sequence[Any]) -> pa.Table:
    import pyarrow as pa

    from components.data import shards
    from components.data.facts import FACTS

    columns = ["split", "label", "bytes", "caption_length", *(name for m in modalities for name in FACTS[m])]
    return pa.concat_tables(shards.index(files, columns))


def _by_split(index: pa.Table, column: str, splits: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    import pyarrow.compute as pc

    return {split: index.column(column).filter(pc.equal(index.column("split"), split)) for split in splits}


def _counts(index: pa.Table, column: str, splits: Sequence[str], most: int) -> list[tuple[str, dict[str, float]]]:
    """value -> split -> samples: the commonest values, the others in one row, null last."""
    counts: dict[str | None, dict[str, float]] = {}
    for split, values in _by_split(index, column, splits).items():
        for row in values.value_counts().to_pylist():
            counts.setdefault(row["values"], dict.fromkeys(splits, 0))[split] = row["counts"]
    missing = counts.pop(None, None)
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    rows = [(str(value), groups) for value, groups in ordered[:most]]
    if rest := ordered[most:]:
        rows.append((f"{len(rest):,} others", {split: sum(groups[split] for _, groups in rest) for split in splits}))
    return rows + ([("(none)", missing)] if missing else [])


def _classes(index: pa.Table, splits: Sequence[str]) -> str:
    """The class balance, drawn; "" where no sample has a label."""
    rows = _counts(index, "label", splits, _CLASSES)
    return charts.bars_svg(rows, width=940, label=150) if any(name != "(none)" for name, _ in rows) else ""


def _distributions(index: pa.Table, splits: Sequence[str], modalities: Sequence[Any]) -> list[Distribution]:
    """Every fact that some sample has."""
    from components.data.facts import FACTS

    kinds = {name: kind for modality in modalities for name, kind in FACTS[modality].items()}
    kinds |= {"caption_length": "float64", "bytes": "float64"}
    found = (_distribution(index, name, kind, splits) for name, kind in kinds.items())
    return [distribution for distribution in found if distribution is not None]


def _distribution(index: pa.Table, name: str, kind: str, splits: Sequence[str]) -> Distribution | None:
    import numpy as np
    import pyarrow.compute as pc

    column = index.column(name)
    missing = column.null_count
    if missing == len(column):
        return None
    note = f"{missing:,} without" if missing else ""
    if not missing and pc.count_distinct(column).as_py() == 1:
        value = column[0].as_py()
        return Distribution(name, _UNITS[name], "", value if kind == "string" else number(value))
    if kind == "string":
        svg = charts.bars_svg(_counts(index, name, splits, _NAMES), width=320, label=80)
        return Distribution(name, _UNITS[name], svg, note)
    groups = {
        split: np.asarray(values.drop_null().to_numpy(), dtype=float)
        for split, values in _by_split(index, name, splits).items()
    }
    bins = charts.histogram(groups)
    if bins is None:
        return None
    median = f"median {number(round(float(pc.quantile(column, 0.5)[0].as_py()), 4))}"
    return Distribution(name, _UNITS[name], charts.histogram_svg(bins), ", ".join(filter(None, (median, note))))


# ------------------------------------------------------------------------------------------------- what was not right


def _shown(files: Files, failed: Sequence[Finding], most: int) -> list[tuple[str, Finding, str, list[Example]]]:
    """(verdict, finding, what was seen, failing samples to look at) of each; critical ones first."""
    order = ("critical", "quarantine", "warning")
    keys = {key for finding in failed for key in finding.examples[:most]}
    known = data_examples.of_keys(files, keys)
    return [
        (verdict(f), f, evidence(f), [known[key] for key in f.examples[:most] if key in known])
        for f in sorted(failed, key=lambda f: order.index(f.severity))
    ]


def _reasons(files: Files) -> list[tuple[str, int, str]]:
    """(reason, samples, some of them) of what was broken or put into quarantine, the most frequent first."""
    import pyarrow.parquet as pq

    found: dict[str, list[str]] = {}
    for name in files.names():
        if name.startswith("broken/"):
            for row in pq.read_table(files.path(name), columns=["key", "reason"]).to_pylist():
                found.setdefault(row["reason"], []).append(row["key"])
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(reason, len(keys), ", ".join(keys[:4]) + (", …" if len(keys) > 4 else "")) for reason, keys in ordered][
        :_REASONS
    ]
