"""`tessera validate` on real data sets: what is found, against what, and what is said where there is nothing to check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components import yamlio
from components.data.files import Folder
from components.interfaces import ImageFormat, Sample
from flows.findings import verdict
from flows.runs import RunError
from flows.validation import ValidationError, index_frame, reference_frame, token_frame, validate_data
from infra.settings import Settings
from infra.storage import open_store
from infra.validation import SuiteError
from tests import _data


def pictures(start: int, stop: int, label: str = "ab", size: tuple[int, int] = (24, 20)) -> list[Sample]:
    return [Sample(f"n/{n}", _data.picture(n, size), label=label[n % len(label)]) for n in range(start, stop)]


def make(folder: Path, samples: list[Sample]) -> Path:
    return _data.write(folder, samples, image=ImageFormat(16, 3))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=tmp_path / "project")


def run(settings: Settings, name: str, samples: list[Sample], digest: str = "d1.dir", **section: object) -> Path:
    """A run that has committed a data set."""
    folder = settings.runs / name
    make(folder / "outputs" / "dataset", samples)
    recipe = {"system": "system", "dataset": {"expectations": "images", "near_duplicates": None, **section}}
    (folder / "recipe.yaml").write_text(yamlio.dump(recipe))
    outs = [{"path": "outputs/dataset", "md5": digest}]
    (folder / "dvc.lock").write_text(yamlio.dump({"schema": "2.0", "stages": {"dataset": {"outs": outs}}}))
    return folder


def promoted(settings: Settings, name: str, digest: str) -> None:
    """A ledger whose champion was made by this run from these data."""
    record = {
        "number": 1,
        "previous": "",
        "model": "system",
        "to": "1",
        "run": name,
        "data": digest,
        "action": "promote",
    }
    open_store(settings.ledger).put_if_absent("promotions/system/000001.json", json.dumps(record).encode())


def failed(findings) -> dict[tuple[str, str], str]:
    return {(f.expectation, f.column): verdict(f) for f in findings if verdict(f) not in ("passed", "not applicable")}


# -------------------------------------------------------------------------------------------------- what is validated


def test_a_folder_meets_the_suite_of_its_modality_and_the_table_says_so(settings, tmp_path, capsys):
    findings = validate_data(settings, str(make(tmp_path / "data", pictures(0, 60))))
    assert failed(findings) == {}
    printed = capsys.readouterr().out
    assert "60 samples against the suite images" in printed
    assert "0 failed, 5 not applicable" in printed


def test_silent_sounds_are_named(settings, tmp_path, capsys):
    tone = 0.3 * np.sin(np.arange(8000) / 3)
    sounds = [Sample(f"{n}.wav", audio=_data.sound(tone * (n != 7) + n / 1e3 * (n != 7))) for n in range(40)]
    findings = validate_data(settings, str(_data.write(tmp_path / "data", sounds)))
    assert failed(findings)[("column_values_to_be_between", "peak")] == "quarantine"
    assert "1 sample: 7.wav ([-120])" in capsys.readouterr().out


def test_a_run_by_its_name_with_the_suite_of_its_recipe(settings, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "- {type: expect_column_values_to_be_between, kwargs: {column: width, max_value: 10}, severity: warning}\n"
    )
    run(settings, "first", pictures(0, 40))
    assert failed(validate_data(settings, "first")) == {}
    assert failed(validate_data(settings, "first", str(tmp_path / "mine.yaml"))) == {
        ("column_values_to_be_between", "width"): "warning"
    }
    assert failed(validate_data(settings, "first", "texts"))[("column_values_to_not_be_null", "characters")] == "failed"


def test_a_recipe_stands_for_its_run_at_the_default_scale(settings):
    (settings.project / "recipes").mkdir(parents=True)
    (settings.project / "recipes" / "mine.yaml").write_text("system: system\n")
    with pytest.raises(
        ValidationError, match=r"recipe 'mine' has no run 'mine-tiny' yet.*tessera run mine --until dataset"
    ):
        validate_data(settings, "mine")
    run(settings, "mine-tiny", pictures(0, 40))
    assert failed(validate_data(settings, "mine")) == {}


def test_what_is_not_there_is_said(settings, tmp_path):
    run(settings, "first", pictures(0, 40))
    with pytest.raises(RunError, match="no run 'frist', did you mean 'first'"):
        validate_data(settings, "frist")
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValidationError, match="photos holds no data set: dataset.json is missing"):
        validate_data(settings, str(tmp_path / "photos"))
    shutil.rmtree(settings.runs / "first" / "outputs" / "dataset" / "index")
    with pytest.raises(ValidationError, match="has no index"):
        validate_data(settings, "first")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("image", None, "no suite 'image', did you mean 'images'"),
        ("none.yaml", None, "no suite '.*none.yaml'"),
        ("bad.yaml", "- {type: [", "bad.yaml is not valid YAML"),
        ("map.yaml", "type: x", "map.yaml: expected a list of {type, kwargs, severity}, got"),
        ("empty.yaml", "[]", "no expectations"),
    ],
)
def test_a_suite_that_cannot_be_used_is_said(settings, tmp_path, name, content, message):
    data = make(tmp_path / "data", pictures(0, 30))
    if name.endswith(".yaml"):
        name = str(tmp_path / name)
        if content is not None:
            Path(name).write_text(content)
    with pytest.raises(SuiteError, match=message):
        validate_data(settings, str(data), name)


@pytest.mark.parametrize(("other", "leaks"), [("held_out", True), ("train", False)])
def test_content_in_two_splits_is_a_leak(settings, tmp_path, other, leaks):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = make(tmp_path / "data", pictures(0, 60))
    path = data / "index" / "part-00000.parquet"
    table = pq.read_table(path)
    hashes, splits = table.column("hash").to_pylist(), table.column("split").to_pylist()
    hashes[splits.index("train")] = hashes[len(splits) - 1 - splits[::-1].index(other)]
    pq.write_table(table.set_column(table.column_names.index("hash"), "hash", pa.array(hashes)), path)
    expected = {("column_values_to_be_between", "splits_of_content"): "failed"} if leaks else {}
    assert failed(validate_data(settings, str(data))) == expected


def test_near_duplicates_across_splits_are_found(settings):
    from components.data.near_duplicates import Signer

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([f"word{n}" for n in range(500)], 200)) for _ in range(30)]
    samples = [Sample(f"{n}{end}", text=text + end) for n, text in enumerate(texts) for end in ("", " again")]
    near = {"threshold": 0.8, "shingle": 5, "unit": "word", "permutations": 128, "drop": False}
    folder = run(settings, "texts", pictures(0, 4), expectations="texts", near_duplicates=near) / "outputs" / "dataset"
    shutil.rmtree(folder)
    _data.write(folder, samples, held_out=0.4, signer=Signer(shingle=5, permutations=128))
    frame = index_frame(folder, near).set_index("key")
    like = frame["near_duplicate_of"].dropna()
    assert like.to_dict() == {f"{n} again": f"{n}" for n in range(30)}
    leaks = {key for key, first in like.items() if frame.loc[key, "split"] != frame.loc[first, "split"]}
    finding = next(f for f in validate_data(settings, "texts") if f.expectation == "no_leakage")
    assert (finding.passed, finding.unexpected) == (False, len(leaks))
    assert set(finding.examples) <= leaks
    assert "near_duplicate_of" not in index_frame(folder)


# ------------------------------------------------------------------------------------------------------------ drift


def test_drift_against_the_champions_data_is_found(settings, capsys):
    run(settings, "first", pictures(0, 200), "d1.dir")
    promoted(settings, "first", "d1.dir")
    run(settings, "second", pictures(1000, 1200, label="aaab", size=(60, 20)), "d2.dir")
    assert failed(validate_data(settings, "first")) == {}
    found = failed(validate_data(settings, "second"))
    assert {column for expectation, column in found if expectation == "no_drift"} >= {"width", "aspect", "bytes"}
    assert "most at 24: 100.0% before, 0.0% now" in capsys.readouterr().out


def test_the_reference_has_what_has_a_distribution(settings):
    run(settings, "first", pictures(0, 40))
    promoted(settings, "first", "d1.dir")
    frame = reference_frame(settings, "system")
    assert frame is not None
    assert len(frame) == 40
    assert set(frame.columns) == {
        "label", "caption_length", "source", "split", "bytes", "width", "height", "aspect", "contrast", "mode",
    }  # fmt: skip


def test_another_run_with_the_same_data_is_as_good(settings):
    run(settings, "second", pictures(0, 40), "d1.dir")
    promoted(settings, "gone", "d1.dir")
    frame = reference_frame(settings, "system")
    assert frame is not None and len(frame) == 40


def test_without_a_champion_or_its_data_there_is_no_reference(settings):
    run(settings, "first", pictures(0, 40), "changed-since.dir")
    assert reference_frame(settings, "system") is None
    promoted(settings, "first", "d1.dir")
    assert reference_frame(settings, "system") is None
    assert all(f.not_applicable for f in validate_data(settings, "first") if f.expectation == "no_drift")


# ----------------------------------------------------------------------------------------------------------- tokens


def test_tokens_are_measured_exactly(tmp_path):
    train = np.array([[0, 1, 1, 3], [1, 1, 1, 1]], dtype=np.uint8)
    folder = _data.tokens(tmp_path / "tokens", {"train": train, "held_out": np.array([[2, 0, 3, 3]], np.uint8)}, 5)
    frame = token_frame(Folder(folder), end=3).set_index("split")
    assert frame.loc["train", "minimum"].tolist() == [0, 1]
    assert frame.loc["train", "maximum"].tolist() == [3, 1]
    assert frame.loc["train", "distinct"].tolist() == [3, 1]
    assert frame.loc["train", "ended"].tolist() == [1, 0]
    assert frame.loc["held_out", "key"] == "held_out/part-00000-000.tokens.npy#0"
    assert set(frame["length"]) == {4}
    shares = np.array([1, 6, 1]) / 8
    assert set(frame["codebook_usage"]) == {3 / 5}
    assert set(frame["dead_codes"]) == {2}
    assert frame["perplexity"].iloc[0] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_tokens_are_the_same_in_blocks(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 50, (30, 8)).astype(np.uint16)
    folder = Folder(_data.tokens(tmp_path / "tokens", {"train": values}, 50))
    whole = token_frame(folder)
    monkeypatch.setattr("flows.validation._BLOCK", 3 * 8)
    pd.testing.assert_frame_equal(token_frame(folder), whole)


def test_a_collapsed_codebook_and_a_token_outside_the_vocabulary_are_found(settings, tmp_path):
    values = np.random.default_rng(0).integers(0, 64, (200, 16)).astype(np.int64)
    good = _data.tokens(tmp_path / "good", {"train": values}, 64)
    assert failed(validate_data(settings, str(good))) == {}
    few = _data.tokens(tmp_path / "few", {"train": values % 4}, 64)
    assert failed(validate_data(settings, str(few))) == {("column_min_to_be_between", "codebook_usage"): "warning"}
    values[3, 5], values[4, 4] = 64, -1
    wrong = failed(validate_data(settings, str(_data.tokens(tmp_path / "wrong", {"train": values}, 64))))
    assert wrong == {
        ("column_values_to_be_between", "minimum"): "failed",
        ("column_pair_values_a_to_be_greater_than_b", "vocabulary, maximum"): "failed",
    }


def test_the_tokens_of_a_run(settings):
    folder = run(settings, "first", pictures(0, 40))
    _data.tokens(folder / "outputs" / "tokens", {"train": np.arange(64).reshape(8, 8)}, 64)
    findings = validate_data(settings, "first", "tokens")
    assert failed(findings) == {}
    assert {f.column for f in findings} >= {"codebook_usage", "perplexity"}
