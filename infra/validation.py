"""Great Expectations over a data frame, with suites as plain data.

An empty suite, an empty frame and an expectation that could not be evaluated are failures here: left alone, Great
Expectations calls all three a success.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEVERITIES = ("critical", "warning")


class SuiteError(ValueError):
    """A suite that cannot be used; the message names the entry."""

    user_error = True


@dataclass(frozen=True)
class Finding:
    """One expectation's outcome. `examples` name samples that fail it, by key."""

    expectation: str
    column: str
    severity: str
    passed: bool
    unexpected: int
    observed: str
    examples: list[str]

    def row(self) -> dict[str, Any]:
        return asdict(self)


def validate(frame: Any, suite: Sequence[dict[str, Any]], key: str = "key") -> list[Finding]:
    """Runs every expectation of `suite` over a pandas frame; `key` is the column that names a sample.

    Each entry is {type, kwargs, severity: critical | warning}. Raises SuiteError."""
    if not suite:
        raise SuiteError("the suite has no expectations; an empty suite proves nothing")
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types import base
    from great_expectations.expectations.registry import get_expectation_impl

    logging.getLogger(base.__name__).setLevel(logging.WARNING)  # it reports its own folders
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = base.ProgressBarsConfig(globally=False)
    name = uuid.uuid4().hex[:8]
    rows = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1}, "severity": "critical"}
    entries = [rows, *suite]
    expectations = []
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) - {"severity"} != {"type", "kwargs"}:
            raise SuiteError(f"an expectation is {{type, kwargs, severity}}, got {entry!r}")
        if entry.get("severity", SEVERITIES[0]) not in SEVERITIES:
            raise SuiteError(f"{entry['type']}: severity is one of {', '.join(SEVERITIES)}, got {entry['severity']!r}")
        try:
            expectations.append(get_expectation_impl(entry["type"])(**entry["kwargs"]))
        except Exception as error:  # Great Expectations raises a class of its own for each kind of mistake
            raise SuiteError(f"expectation {entry['type']}: {' '.join(str(error).split())}") from error
    frame = frame.reset_index(drop=True)  # unexpected rows are reported by index
    batch = (
        context.data_sources.add_pandas(f"source-{name}")
        .add_dataframe_asset("frame")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": frame})
    )
    findings = []
    for entry, expectation in zip(entries, expectations, strict=True):
        result = batch.validate(expectation, result_format={"result_format": "COMPLETE"})
        findings.append(_finding(entry, result.to_json_dict(), frame, key))
    return findings


def _finding(entry: dict[str, Any], result: dict[str, Any], frame: Any, key: str) -> Finding:
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
    indexes = detail.get("unexpected_index_list") or []
    observed = detail.get("observed_value", detail.get("partial_unexpected_list", [])[:5])
    examples = [str(frame.iloc[index][key]) for index in indexes[:10] if isinstance(index, int)]
    return Finding(
        expectation=entry["type"].removeprefix("expect_"),
        column=str(entry["kwargs"].get("column", "")),
        severity=entry.get("severity", "critical"),
        passed=bool(result["success"]) and not raised,
        unexpected=int(detail.get("unexpected_count") or 0),
        observed=f"could not be evaluated: {raised}" if raised else str(observed),
        examples=examples,
    )
