"""Great Expectations says no where it should: also where, left alone, it would say yes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components import yamlio
from components.data import shards
from components.data.facts import FACTS
from infra.expectations import drift
from infra.validation import SEVERITIES, SuiteError, validate

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
    assert (finding.wanted, finding.observed) == ("at most 1", "[2, 300]")
    assert finding.row()["column"] == "size"


def test_a_share_may_fail():
    assert only(expectation("column_values_to_be_between", column="size", max_value=2, mostly=0.6)).passed
    assert not only(expectation("column_values_to_be_between", column="size", max_value=2, mostly=0.7)).passed


def test_what_was_wanted_is_said_in_words():
    names = expectation("column_values_to_be_in_set", column="name", value_set=["x", "y"], mostly=0.95)
    assert only(names).wanted == "one of x, y, for 95%"
    assert only(expectation("column_values_to_not_be_null", column="size")).wanted == ""
    assert only(own("balance", column="name", min_ratio=0.1)).wanted == "a ratio of at least 0.1"


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
        (
            expectation("column_values_to_not_be_null", "fatal", column="name"),
            "one of critical, warning, quarantine, got 'fatal'",
        ),
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


def test_findings_come_in_the_order_of_the_suite_also_when_some_cannot_be_evaluated():
    missing = expectation("column_values_to_not_be_null", column="missing")
    there = expectation("column_values_to_not_be_null", column="name")
    whole = expectation("column_max_to_be_between", column="size", max_value=10)
    suite = [missing, there, own("all_or_none", column="name"), whole, there, missing]
    findings = validate(FRAME, suite)[1:]
    assert [(f.expectation, f.column) for f in findings] == [
        (entry["type"].removeprefix("expect_"), entry["kwargs"]["column"]) for entry in suite
    ]
    assert [f.unexpected for f in findings] == [0, 1, 1, 0, 1, 0]


def test_an_expectation_on_two_columns_names_both():
    pair = expectation("column_pair_values_a_to_be_greater_than_b", column_A="a", column_B="b")
    finding = only(pair, pd.DataFrame({"key": ["x", "y"], "a": [2, 2], "b": [1, 3]}))
    assert (finding.column, finding.examples, finding.rows) == ("a, b", ["y"], [1])


# ------------------------------------------------------------------------------------------------------- quarantine


def test_a_quarantine_names_every_row_that_fails():
    frame = pd.DataFrame({"key": [f"k{i}" for i in range(500)], "size": np.arange(500)})
    frame = frame.sample(frac=1, random_state=0)  # positions, not the frame's own index
    finding = only(expectation("column_values_to_be_between", "quarantine", column="size", max_value=99), frame)
    assert not finding.passed
    assert sorted(frame["size"].iloc[finding.rows]) == list(range(100, 500))
    assert finding.unexpected == 400
    assert "rows" not in finding.row()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (expectation("column_mean_to_be_between", "quarantine", column="size", max_value=1), "names no rows"),
        (expectation("table_row_count_to_be_between", "quarantine", min_value=1), "names no rows"),
        ({**expectation("balance", "quarantine", column="name", min_ratio=0.1)}, "names no rows"),
        (expectation("no_drift", "quarantine", column="size", max_psi=0.1), "names no rows"),
        (expectation("column_values_to_not_be_null", "quarantine", column="name", mostly=0.9), "leave out 'mostly'"),
    ],
)
def test_a_quarantine_of_what_names_no_rows_is_refused(entry, message):
    with pytest.raises(SuiteError, match=message):
        validate(FRAME, [entry])


def test_a_quarantine_that_cannot_be_evaluated_stops():
    finding = only(expectation("column_values_to_be_between", "quarantine", column="missing", max_value=1))
    assert (finding.severity, finding.passed, finding.rows) == ("critical", False, [])


# --------------------------------------------------------------------------------------- balance, all or none, leaks


def own(type: str, severity: str = "warning", **kwargs):
    return expectation(type, severity, **kwargs)


def test_balance_is_the_rarest_over_the_commonest():
    frame = pd.DataFrame({"key": range(110), "label": ["cat"] * 100 + ["dog"] * 10})
    assert only(own("balance", column="label", min_ratio=0.1), frame).passed
    finding = only(own("balance", column="label", min_ratio=0.11), frame)
    assert (finding.passed, finding.observed) == (False, "'dog' 10 samples, 'cat' 100: 0.1")


def test_balance_without_labels_is_not_applicable():
    finding = only(own("balance", column="name", min_ratio=0.1), FRAME.assign(name=None))
    assert (finding.passed, finding.not_applicable) == (False, True)


def test_captions_are_there_for_all_or_for_none():
    for lengths, passed, rows in ([None] * 3, True, []), ([3, None, 5], False, [1]), ([3, 4, 5], True, []):
        finding = only(own("all_or_none", column="caption_length"), FRAME.assign(caption_length=lengths))
        assert (finding.passed, finding.rows) == (passed, rows)
    frame = FRAME.assign(caption_length=[3, None, 5])
    assert only(own("all_or_none", column="caption_length", mostly=0.6), frame).passed


def test_a_source_without_captions_may_stand_beside_one_with():
    frame = pd.DataFrame(
        {"key": list("abcd"), "source": ["target"] * 2 + ["source"] * 2, "caption_length": [None, None, 3, 4]}
    )
    assert not only(own("all_or_none", column="caption_length"), frame).passed
    assert only(own("all_or_none", column="caption_length", by="source"), frame).passed
    frame.loc[3, "caption_length"] = None
    finding = only(own("all_or_none", column="caption_length", by="source"), frame)
    assert (finding.passed, finding.examples) == (False, ["d"])
    assert "no column 'origin'" in only(own("all_or_none", column="caption_length", by="origin"), frame).observed


def test_a_near_duplicate_across_the_held_out_split_is_a_leak():
    frame = pd.DataFrame(
        {
            "key": ["a", "b", "c", "d", "e"],
            "split": ["train", "train", "held_out", "target", "held_out"],
            "near_duplicate_of": [None, "a", "a", "a", "c"],
        }
    )
    finding = only(own("no_leakage"), frame)
    assert (finding.passed, finding.examples, finding.rows) == (False, ["c"], [2])
    assert only(own("no_leakage"), frame.drop(index=2).replace("c", "b").iloc[:3]).passed


def test_leaks_that_nobody_looked_for_are_not_applicable():
    assert only(own("no_leakage"), FRAME.assign(split="train")).not_applicable


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (own("no_drift", column="size"), "expect_no_drift.*max_psi"),
        (own("no_drift", column="size", max_psi=-1), "expect_no_drift.*greater than 0"),
        (own("balance", column="size", min_ratio=2), "expect_balance.*less than or equal to 1"),
        (own("all_or_none", colum="size"), "expect_all_or_none.*column"),
    ],
)
def test_a_wrong_entry_of_ours_is_named(entry, message):
    with pytest.raises(SuiteError, match=message):
        validate(FRAME, [entry])


@pytest.mark.parametrize("type", ["balance", "all_or_none", "no_drift"])
def test_ours_fail_as_well_where_the_column_is_missing(type):
    kwargs = {"balance": {"min_ratio": 0.1}, "no_drift": {"max_psi": 0.1}, "all_or_none": {}}[type]
    finding = validate(FRAME, [own(type, column="missing", **kwargs)], reference=FRAME)[1]
    assert (finding.passed, finding.not_applicable) == (False, False)
    assert finding.observed == "could not be evaluated: the data have no column 'missing'"


# ------------------------------------------------------------------------------------------------------------ drift


def numbers(size: int, seed: int = 0, shift: float = 0.0) -> pd.Series:
    return pd.Series(np.random.default_rng(seed).normal(shift, 1, size))


def test_the_index_is_the_sum_over_bins():
    before, after = pd.Series(["a"] * 75 + ["b"] * 25), pd.Series(["a"] * 50 + ["b"] * 50)
    p, q = np.array([75.5, 25.5]) / 101, np.array([50.5, 50.5]) / 101
    found = drift(before, after)
    assert found.psi == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert (found.bin, found.before, found.after) == ("'a'", 0.75, 0.5)


@pytest.mark.parametrize("values", [numbers(1000), pd.Series(["a", "b", None] * 50), pd.Series([28.0] * 40)])
def test_nothing_drifts_from_itself(values):
    assert drift(values, values.sample(frac=1, random_state=1)).psi == 0


def test_a_shifted_distribution_drifts():
    reference = pd.DataFrame({"size": numbers(2000)})
    frame = pd.DataFrame({"key": range(2000), "size": numbers(2000, seed=1, shift=0.8)})
    finding = validate(frame, [own("no_drift", column="size", max_psi=0.25)], reference=reference)[1]
    assert not finding.passed and not finding.not_applicable
    assert finding.observed.startswith("PSI 0.")


@pytest.mark.parametrize("value", [20.0, 40.0])
def test_values_outside_the_range_of_the_reference_drift_to_either_side(value):
    many = pd.Series(np.linspace(28, 32, 400))
    assert drift(many, pd.Series([value] * 400)).psi > 1
    assert drift(pd.Series([28.0] * 400), pd.Series([value] * 400)).psi > 1


def test_the_least_and_the_largest_value_are_inside_the_range():
    before = pd.Series(np.linspace(28, 32, 401))
    for value, bin in (28.0, "28 to 28.4"), (32.0, "31.6 to 32"), (27.9, "less than 28"), (32.1, "more than 32"):
        assert drift(before, pd.Series([value] * 50)).bin == bin


def test_a_share_of_nulls_is_part_of_the_distribution():
    assert drift(numbers(500), numbers(500).mask(np.arange(500) < 250)).bin == "none"
    found = drift(pd.Series(["de"] * 500), pd.Series(["de"] * 250 + [None] * 250))
    assert found.psi > 1


def test_a_new_language_is_named():
    reference = pd.DataFrame({"language": ["de"] * 300 + ["en"] * 100})
    frame = pd.DataFrame({"key": range(400), "language": ["de"] * 200 + ["en"] * 80 + ["fr"] * 120})
    finding = validate(frame, [own("no_drift", column="language", max_psi=0.25)], reference=reference)[1]
    assert not finding.passed
    assert finding.observed.endswith("most at others: 0.0% before, 30.0% now")


def test_what_chance_explains_in_small_samples_is_no_drift():
    entry = [own("no_drift", column="size", max_psi=0.01)]
    alarms = large = 0
    for seed in range(200):
        found = drift(numbers(60, seed), numbers(60, seed + 1000))
        large += found.psi > 0.25
        alarms += found.psi > found.chance
    assert large > 10  # the customary threshold alone would cry wolf
    assert alarms <= 2
    small = pd.DataFrame({"key": range(60), "size": numbers(60, 1)})
    assert validate(small, entry, reference=pd.DataFrame({"size": numbers(60, 2)}))[1].passed


def test_severities_have_thresholds_of_their_own():
    reference, frame = pd.DataFrame({"size": numbers(5000)}), pd.DataFrame({"size": numbers(5000, 1, 0.6)})
    frame["key"] = range(5000)
    suite = [
        own("no_drift", "warning", column="size", max_psi=0.1),
        own("no_drift", "critical", column="size", max_psi=2),
    ]
    warning, critical = validate(frame, suite, reference=reference)[1:]
    assert (warning.passed, critical.passed) == (False, True)


@pytest.mark.parametrize("reference", [None, pd.DataFrame({"other": [1]}), pd.DataFrame({"name": [None]})])
def test_without_anything_to_compare_with_drift_is_not_applicable(reference):
    frame = FRAME.assign(name=None)
    finding = validate(frame, [own("no_drift", column="name", max_psi=0.1)], reference=reference)[1]
    assert (finding.passed, finding.not_applicable) == (False, True)


# ------------------------------------------------------------------------------------------------------- the suites

SUITES = sorted((Path(shards.__file__).parent / "expectations").glob("*.yaml"))
TOKENS = ("split", "length", "minimum", "maximum", "vocabulary", "distinct", "ended", "codebook_usage", "perplexity")


def good(suite: str, rows: int = 200) -> pd.DataFrame:
    """Data that meet a suite."""
    rng = np.random.default_rng(0)
    common = pd.DataFrame(
        {
            "key": [f"k{i}" for i in range(rows)],
            "label": rng.choice(["cat", "dog"], rows),
            "caption_length": None,
            "hash": [f"{i:064x}" for i in range(rows)],
            "source": "source",
            "split": rng.choice(["train", "held_out"], rows),
            "bytes": rng.integers(500, 900, rows),
            "splits_of_content": 1,
        }
    )
    size = rng.integers(32, 64, rows).astype(float)
    facts = {
        "images": {"width": size, "height": size, "aspect": 1.0, "contrast": 40.0, "mode": "RGB"},
        "texts": {
            "characters": size, "words": size / 5, "lines": 1.0, "language": "en", "printable": 1.0, "ascii": 1.0,
            "repetition": 0.0, "compression": 0.6,
        },
        "audio": {
            "seconds": size / 10, "rate": 16000.0, "channels": 1.0, "peak": -3.0, "rms": -20.0, "silence": 0.1,
            "clipping": 0.0,
        },
        "arrays": {"rows": size, "columns": 3.0, "finite": 1.0, "minimum": -1.0, "maximum": 1.0},
        "tokens": {
            "length": 64, "minimum": 0, "maximum": 511, "vocabulary": 512, "distinct": 40, "ended": None,
            "codebook_usage": 0.9, "perplexity": 200.0,
        },
    }  # fmt: skip
    return common.assign(**facts[suite])


def test_there_is_a_suite_for_every_modality_and_for_tokens():
    assert [path.stem for path in SUITES] == ["arrays", "audio", "images", "texts", "tokens"]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_good_data_meet_their_suite(path):
    frame = good(path.stem)
    findings = validate(frame, yamlio.load(path), reference=frame.sample(frac=0.5, random_state=0))
    failed = [f for f in findings if not f.passed]
    assert {f.expectation for f in failed} <= {"no_leakage"}  # nobody looked for near-duplicates
    assert all(f.not_applicable for f in failed)
    assert {f.severity for f in findings} <= set(SEVERITIES)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_speaks_of_columns_that_the_index_has(path):
    known = {name for facts in FACTS.values() for name in facts} | set(good("images").columns)
    known |= {"near_duplicate_of"} | (set(TOKENS) if path.stem == "tokens" else set())
    named = {
        value for entry in yamlio.load(path) for name, value in entry["kwargs"].items() if name.startswith("column")
    }
    assert named <= known


BAD = [
    ("images", "contrast", 0.0, "warning"),
    ("images", "width", 2.0, "critical"),
    ("images", "splits_of_content", 2, "critical"),
    ("images", "split", "test", "critical"),
    ("images", "hash", "abc", "critical"),
    ("texts", "printable", 0.5, "quarantine"),
    ("texts", "characters", 0.0, "quarantine"),
    ("texts", "language", "und", "warning"),
    ("texts", "repetition", 0.9, "warning"),
    ("audio", "peak", -120.0, "quarantine"),
    ("audio", "silence", 1.0, "warning"),
    ("audio", "clipping", 0.2, "warning"),
    ("audio", "seconds", 0.0, "quarantine"),
    ("arrays", "finite", 0.9, "quarantine"),
    ("arrays", "maximum", -1.0, "warning"),
    ("tokens", "maximum", 512, "critical"),
    ("tokens", "minimum", -1, "critical"),
    ("tokens", "codebook_usage", 0.1, "warning"),
    ("tokens", "perplexity", 1.0, "critical"),
    ("tokens", "ended", 0, "warning"),
    ("tokens", "length", 0, "critical"),
]


@pytest.mark.parametrize(("suite", "column", "value", "severity"), BAD)
def test_bad_data_are_found_with_their_severity(suite, column, value, severity):
    frame = good(suite)
    frame[column] = value
    path = next(path for path in SUITES if path.stem == suite)
    failed = [f for f in validate(frame, yamlio.load(path)) if not f.passed and not f.not_applicable]
    assert (column, severity) in {(name, f.severity) for f in failed for name in f.column.split(", ")}


def test_a_hundred_thousand_rows_take_seconds():
    import time

    frame = good("images", rows=100_000)
    frame["contrast"] = 0.0
    start = time.perf_counter()
    findings = validate(frame, yamlio.load(next(path for path in SUITES if path.stem == "images")), reference=frame)
    assert time.perf_counter() - start < 20
    assert next(f for f in findings if f.column == "contrast" and not f.passed).unexpected == 100_000
