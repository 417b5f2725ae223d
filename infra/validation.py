"""Great Expectations over a data frame, with suites as plain data, and a few expectations of our own beside it.

An empty suite, an empty frame and an expectation that could not be evaluated are failures here: left alone, Great
Expectations calls all three a success. `infra.expectations` has what it lacks (drift, leakage, balance).
Severities: `critical` stops, `warning` is reported, `quarantine` takes the failing rows out of the data.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from infra.expectations import OWN, NotEvaluated, Own

if TYPE_CHECKING:
    import pandas as pd

SEVERITIES = ("critical", "warning", "quarantine")
_EXAMPLES = 10

Entry = Mapping[str, Any]  # {type, kwargs, severity} of a suite


class SuiteError(ValueError):
    """A suite that cannot be used; the message names the entry."""

    user_error = True


@dataclass(frozen=True)
class Finding:
    """One expectation's outcome. `examples` name samples that fail it, by key; `rows` are the positions of all of them in
    the frame. A quarantine that could not be evaluated is critical: nobody knows which rows to take out."""

    expectation: str
    column: str
    severity: str
    passed: bool
    unexpected: int
    observed: str
    examples: list[str]
    wanted: str = ""  # what was asked of the column, in words
    not_applicable: bool = False  # there is nothing it could be checked on; then it has not passed, either
    rows: list[int] = field(default_factory=list, repr=False)

    def row(self) -> dict[str, Any]:
        """All but the rows, for a table."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}


def validate(
    frame: pd.DataFrame, suite: Sequence[Entry], key: str = "key", reference: pd.DataFrame | None = None
) -> list[Finding]:
    """Checks every entry of `suite` on a pandas frame; `key` is the column that names a sample.

    Each entry is {type, kwargs, severity: critical | warning | quarantine}; the first finding says whether there are rows
    at all. `reference` is what `expect_no_drift` compares with. Raises SuiteError."""
    if not suite:
        raise SuiteError("the suite has no expectations; an empty suite proves nothing")
    rows = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1}, "severity": "critical"}
    entries = [rows, *suite]
    expectations = [_expectation(entry) for entry in entries]
    frame = frame.reset_index(drop=True)  # unexpected rows are reported by index
    theirs = [number for number, expectation in enumerate(expectations) if not isinstance(expectation, Own)]
    results = dict(zip(theirs, _great_expectations(frame, [expectations[number] for number in theirs]), strict=True))
    keys = frame.get(key)
    return [
        _own(entry, expectation, frame, reference, keys)
        if isinstance(expectation, Own)
        else _finding(entry, results[number], keys)
        for number, (entry, expectation) in enumerate(zip(entries, expectations, strict=True))
    ]


def _expectation(entry: Entry) -> Any:
    """The expectation that an entry names: one of ours, or Great Expectations' own. Raises SuiteError."""
    if not isinstance(entry, dict) or set(entry) - {"severity"} != {"type", "kwargs"}:
        raise SuiteError(f"an expectation is {{type, kwargs, severity}}, got {entry!r}")
    severity = entry.get("severity", SEVERITIES[0])
    if severity not in SEVERITIES:
        raise SuiteError(f"{entry['type']}: severity is one of {', '.join(SEVERITIES)}, got {severity!r}")
    own = OWN.get(entry["type"])
    if severity == "quarantine" and "mostly" in entry["kwargs"]:
        raise SuiteError(f"{entry['type']}: a quarantine takes out every row that fails; leave out 'mostly'")
    try:
        expectation = (own or _theirs(entry["type"]))(**entry["kwargs"])
    except Exception as error:  # Great Expectations raises a class of its own for each kind of mistake
        raise SuiteError(f"expectation {entry['type']}: {' '.join(str(error).split())}") from error
    if severity == "quarantine" and not _names_rows(expectation):
        raise SuiteError(
            f"{entry['type']}: it looks at a column as a whole and names no rows, so nothing can be put into quarantine; "
            "make it critical or warning"
        )
    return expectation


def _names_rows(expectation: Any) -> bool:
    if isinstance(expectation, Own):
        return expectation.names_rows
    from great_expectations.expectations import expectation as kinds

    maps = (kinds.ColumnMapExpectation, kinds.ColumnPairMapExpectation, kinds.MulticolumnMapExpectation)
    return isinstance(expectation, maps)


def _theirs(type: str) -> Any:
    """The class of Great Expectations' own; its first import is made quiet."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    from great_expectations.data_context.types import base
    from great_expectations.expectations.registry import get_expectation_impl

    logging.getLogger(base.__name__).setLevel(logging.WARNING)  # it reports its own folders
    return get_expectation_impl(type)


def _great_expectations(frame: pd.DataFrame, expectations: Sequence[Any]) -> list[dict[str, Any]]:
    """The result of each expectation, in order. All in one call: each call hashes the whole frame."""
    import great_expectations as gx
    from great_expectations.data_context.types import base

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = base.ProgressBarsConfig(globally=False)
    name = uuid.uuid4().hex[:8]
    batch = (
        context.data_sources.add_pandas(f"source-{name}")
        .add_dataframe_asset("frame")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": frame})
    )
    for number, expectation in enumerate(expectations):
        expectation.meta = {"number": number}  # results come in another order
    suite = gx.ExpectationSuite(name=name, expectations=list(expectations))
    found = batch.validate(suite, result_format={"result_format": "COMPLETE"})
    results = [result.to_json_dict() for result in found.results]
    return sorted(results, key=lambda result: result["expectation_config"]["meta"]["number"])


def _finding(entry: Entry, result: dict[str, Any], keys: pd.Series | None) -> Finding:
    detail = result.get("result") or {}
    info = result.get("exception_info") or {}
    raised = info.get("exception_message") or next(
        (
            value["exception_message"]
            for value in info.values()
            if isinstance(value, dict) and value.get("exception_message")
        ),
        None,
    )
    observed = detail.get("observed_value", detail.get("partial_unexpected_list", [])[:5])
    rows = [index for index in detail.get("unexpected_index_list") or [] if isinstance(index, int)]
    return _found(
        entry,
        passed=bool(result["success"]),
        raised=raised,
        unexpected=int(detail.get("unexpected_count") or 0),
        observed=_told(observed),
        rows=rows,
        keys=keys,
    )


_WORDS = {
    "min_value": "at least {}", "max_value": "at most {}", "value_set": "one of {}", "regex": "like {}",
    "max_psi": "PSI at most {}", "min_ratio": "a ratio of at least {}", "mostly": "for {:.4g}%", "by": "in each {}",
}  # fmt: skip


def _wanted(kwargs: Mapping[str, Any]) -> str:
    """The arguments of an expectation in words; its columns are named elsewhere."""
    told = []
    for name, value in kwargs.items():
        if name.startswith("column"):
            continue
        shown = value * 100 if name == "mostly" else ", ".join(map(str, value)) if isinstance(value, list) else value
        told.append(_WORDS.get(name, name.replace("_", " ") + " {}").format(shown))
    return ", ".join(told)


def _told(observed: Any) -> str:
    """A value, or some of the unexpected ones, for people."""
    if isinstance(observed, list):
        return f"[{', '.join(_told(value) for value in observed)}]"
    return f"{observed:.4g}" if isinstance(observed, float) else str(observed)


def _own(
    entry: Entry, expectation: Own, frame: pd.DataFrame, reference: pd.DataFrame | None, keys: pd.Series | None
) -> Finding:
    try:
        outcome = expectation.check(frame, reference)
    except NotEvaluated as error:
        return _found(entry, passed=False, raised=str(error), unexpected=0, observed="", rows=[], keys=keys)
    rows = list(outcome.rows)
    return _found(
        entry,
        passed=outcome.passed,
        raised=None,
        unexpected=len(rows),
        observed=outcome.observed,
        rows=rows,
        keys=keys,
        not_applicable=outcome.not_applicable,
    )


def _found(
    entry: Entry,
    *,
    passed: bool,
    raised: str | None,
    unexpected: int,
    observed: str,
    rows: list[int],
    keys: pd.Series | None,
    not_applicable: bool = False,
) -> Finding:
    severity, kwargs = entry.get("severity", SEVERITIES[0]), entry["kwargs"]
    columns = [kwargs[name] for name in ("column", "column_A", "column_B") if name in kwargs]
    return Finding(
        expectation=entry["type"].removeprefix("expect_"),
        column=", ".join(columns or kwargs.get("column_list", [])),
        severity="critical" if raised and severity == "quarantine" else severity,
        passed=passed and not raised,
        unexpected=unexpected,
        observed=f"could not be evaluated: {raised}" if raised else observed,
        wanted=_wanted(kwargs),
        examples=[] if keys is None else [str(keys.iloc[row]) for row in rows[:_EXAMPLES]],
        not_applicable=not_applicable,
        rows=rows,
    )
