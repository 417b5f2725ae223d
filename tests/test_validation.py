"""Great Expectations says no where it should: also where, left alone, it would say yes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from infra.validation import SuiteError, validate

FRAME = pd.DataFrame({"key": ["a", "b", "c"], "size": [1, 2, 300], "name": ["x", None, "y"]}, index=[7, 7, 9])


def expectation(type: str, severity: str | None = None, **kwargs):
    return {"type": f"expect_{type}", "kwargs": kwargs, **({"severity": severity} if severity else {})}


def only(entry, frame=FRAME):
    rows, finding = validate(frame, [entry])
    assert rows.passed == bool(len(frame))
    return finding


def test_what_is_met():
    finding = only(expectation("column_values_to_be_between", column="size", min_value=1, max_value=300))
    assert finding.passed
    assert (finding.unexpected, finding.examples, finding.severity) == (0, [], "critical")


def test_what_is_not_met_names_the_samples():
    finding = only(expectation("column_values_to_be_between", "warning", column="size", max_value=1))
    assert not finding.passed
    assert (finding.unexpected, finding.examples, finding.severity) == (2, ["b", "c"], "warning")
    assert finding.observed == "[2, 300]"
    assert finding.row()["column"] == "size"


def test_a_share_may_fail():
    assert only(expectation("column_values_to_be_between", column="size", max_value=2, mostly=0.6)).passed
    assert not only(expectation("column_values_to_be_between", column="size", max_value=2, mostly=0.7)).passed


def test_nulls():
    finding = only(expectation("column_values_to_not_be_null", column="name"))
    assert (finding.passed, finding.examples) == (False, ["b"])


@pytest.mark.parametrize(
    "entry",
    [
        expectation("column_values_to_not_be_null", column="missing"),
        expectation("column_values_to_be_between", column="missing", max_value=3),
        expectation("column_values_to_be_between", column="name", max_value=3),
    ],
)
def test_what_cannot_be_evaluated_fails_and_says_why(entry):
    finding = only(entry)
    assert not finding.passed
    assert finding.observed.startswith("could not be evaluated: ")
    assert finding.unexpected == 0


def test_an_empty_suite_is_refused():
    for suite in ([], None):
        with pytest.raises(SuiteError, match="no expectations"):
            validate(FRAME, suite)


def test_an_empty_frame_fails():
    findings = validate(FRAME.iloc[:0], [expectation("column_values_to_not_be_null", column="key")])
    assert not findings[0].passed
    assert findings[0].severity == "critical"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (expectation("nonsense", column="name"), "expect_nonsense"),
        (expectation("column_values_to_not_be_null", colum="name"), "expect_column_values_to_not_be_null.*colum"),
        (expectation("column_values_to_not_be_null", "fatal", column="name"), "one of critical, warning, got 'fatal'"),
        ({"kwargs": {}}, "an expectation is"),
        ({"type": "expect_column_values_to_not_be_null"}, "an expectation is"),
        ({**expectation("column_values_to_not_be_null", column="name"), "sev": 1}, "an expectation is"),
        ("expect_column_values_to_not_be_null", "an expectation is"),
    ],
)
def test_a_wrong_entry_is_named(entry, message):
    with pytest.raises(SuiteError, match=message):
        validate(FRAME, [entry])


def test_validations_do_not_disturb_one_another():
    entry = expectation("column_values_to_be_between", column="size", max_value=10)
    assert [only(entry).passed for _ in range(3)] == [False] * 3


def test_examples_are_few_and_counts_are_whole():
    frame = pd.DataFrame({"key": [f"k{i}" for i in range(5000)], "size": np.arange(5000)})
    finding = only(expectation("column_values_to_be_between", column="size", max_value=9), frame)
    assert finding.unexpected == 4990
    assert finding.examples == [f"k{i}" for i in range(10, 20)]
