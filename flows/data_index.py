"""What the index of a data set says without its samples: columns, distributions, what was refused, and what differs
between two data sets.

Columns are read one after another, so that an index of any size fits. Samples are the same when their content hash is,
whatever they are called. Distributions are compared by the population stability index (`infra.expectations`).
Absent on purpose: what is in the samples beyond their facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from components.interfaces import Files

NAMED = 5  # samples that are named
_MOST = 20  # values of a fact that is a name
QUANTILES = {"5%": 0.05, "median": 0.5, "95%": 0.95}
_WORDS = {"image": "pictures", "text": "texts", "audio": "sounds", "array": "numeric arrays"}
#: what of a reason tells samples apart, not reasons: numbers, names of other samples
_PARTICULAR = re.compile(r"\b0x[0-9a-f]+|(?<![\w-])\d+|(?<=near-duplicate of ).*")


class DataViewError(ValueError):
    """Something that is not a data set, or cannot be looked at; the message says what to do."""

    user_error = True


def columns(files: Files, names: Sequence[str]) -> pa.Table:
    """Columns of the index, one row a sample. Raises DataViewError."""
    import pyarrow as pa

    from components.data import shards

    parts = list(shards.index(files, names))
    if not parts:
        raise DataViewError("the data set has no index: an earlier version made it; `tessera run` makes it again")
    return pa.concat_tables(parts).combine_chunks()


def column(files: Files, name: str) -> pd.Series:
    """One column of the index."""
    return columns(files, [name]).column(name).to_pandas()


def facts(about: Mapping[str, Any]) -> list[str]:
    """What is measured of the samples of a data set: columns of its index."""
    from components.data.facts import FACTS

    return [*(name for modality in about["modalities"] for name in FACTS[modality]), "caption_length", "bytes"]


def what(about: Mapping[str, Any]) -> str:
    """What kind of samples there are, and how networks see them."""
    kinds = " with ".join(_WORDS[modality] for modality in about["modalities"])
    if not (image := about["image"]):
        return kinds
    return f"{kinds}, seen as {image['size']} x {image['size']} in {'grey' if image['channels'] == 1 else 'colour'}"


def reasons(files: Files) -> dict[str, dict[str, Any]]:
    """Why samples were refused -> {count, some of their keys}, the most frequent reasons first."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, Any]] = {}
    for name in files.names():
        if name.startswith("broken/"):
            for row in pq.read_table(files.path(name), columns=["key", "reason"]).to_pylist():
                entry = found.setdefault(_PARTICULAR.sub("…", row["reason"]), {"count": 0, "some": []})
                entry["count"] += 1
                entry["some"] += [row["key"]] if entry["count"] <= NAMED else []
    return dict(sorted(found.items(), key=lambda item: -item[1]["count"]))


def summary(values: pd.Series) -> dict[str, Any]:
    """The distribution of a fact: of numbers {mean, 5%, median, 95%, without}, of names {shares, without}, the commonest
    first; {without} where no sample has it."""
    from pandas.api.types import is_numeric_dtype

    without = int(values.isna().sum())
    if without == len(values):
        return {"without": without}
    if not is_numeric_dtype(values):
        shares = values.value_counts(normalize=True).head(_MOST)
        return {"shares": {str(name): float(share) for name, share in shares.items()}, "without": without}
    quantiles = {name: float(values.quantile(q)) for name, q in QUANTILES.items()}
    return {"mean": float(values.mean()), **quantiles, "without": without}


def compare(files_a: Files, files_b: Files) -> dict[str, Any]:
    """What changed from one data set to another; samples are the same when their content is. Counts are pairs, before and
    after."""
    import pyarrow.compute as pc

    from components.data import shards

    about_a, about_b = shards.describe(files_a), shards.describe(files_b)
    a, b = (columns(files, ["hash", "key", "split", "label"]) for files in (files_a, files_b))
    place = pc.index_in(b.column("hash"), value_set=a.column("hash"))  # of each sample of b in a, null where it is new
    kept = b.filter(pc.is_valid(place)).append_column("before", place.drop_null())
    before = a.take(kept.column("before"))
    refused_a, refused_b = reasons(files_a), reasons(files_b)
    return {
        "what": [what(about_a), what(about_b)],
        "rows": {"a": len(a), "b": len(b), "kept": len(kept)},
        "added": _named(b.filter(pc.is_null(place))),
        "removed": _named(a.filter(pc.invert(pc.is_in(a.column("hash"), value_set=b.column("hash"))))),
        "moved": _changed(before, kept, "split"),
        "relabelled": _changed(before, kept, "label"),
        "splits": {
            split: [about["splits"].get(split, {"rows": 0})["rows"] for about in (about_a, about_b)]
            for split in shards.SPLITS
            if split in about_a["splits"] or split in about_b["splits"]
        },
        "labels": _balance(a, b),
        "facts": _drifts(files_a, files_b, [name for name in facts(about_a) if name in facts(about_b)]),
        "refused": [sum(reason["count"] for reason in found.values()) for found in (refused_a, refused_b)],
        "new_reasons": {reason: found for reason, found in refused_b.items() if reason not in refused_a},
    }


def _named(samples: pa.Table) -> dict[str, Any]:
    return {"count": len(samples), "some": samples.column("key").slice(0, NAMED).to_pylist()}


def _changed(before: pa.Table, after: pa.Table, name: str) -> dict[str, Any]:
    """The samples of which a column is another; rows of the two tables are the same samples."""
    import pyarrow.compute as pc

    one, two = (table.column(name).fill_null("-") for table in (before, after))
    other = pc.not_equal(one, two)
    some = [values.filter(other).slice(0, NAMED).to_pylist() for values in (after.column("key"), one, two)]
    return {
        "count": pc.sum(other).as_py() or 0,
        "some": [f"{key}: {was} -> {now}" for key, was, now in zip(*some, strict=True)],
    }


def _balance(a: pa.Table, b: pa.Table) -> dict[str, list[int]]:
    """The classes that have another number of samples now: class -> before, after."""
    counts = [
        {row["values"] or "(none)": row["counts"] for row in table.column("label").value_counts().to_pylist()}
        for table in (a, b)
    ]
    both = {name: [found.get(name, 0) for found in counts] for name in sorted(counts[0] | counts[1])}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def _drifts(files_a: Files, files_b: Files, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The distributions of each fact that some sample has, and how far they are apart."""
    from infra.expectations import drift

    found = {}
    for name in names:
        a, b = (column(files, name) for files in (files_a, files_b))
        if a.notna().any() or b.notna().any():
            moved = drift(a, b)
            found[name] = {"a": summary(a), "b": summary(b), "psi": moved.psi, "chance": moved.chance}
    return found
