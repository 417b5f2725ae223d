"""The dataset stage end to end: what it writes, and that nothing invalid goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data.shards import DataError, load_split
from components.interfaces import Part, Sample, Source
from flows.context import StageContext, StageFailed
from flows.data import TrainingImages
from flows.dataset import body
from infra.validation import SuiteError


def save(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    for number in range(40):
        save(folder / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    return folder


def context(tmp_path: Path, source: dict, **changes) -> StageContext:
    section = {
        "source": source,
        "target": None,
        "image": {"size": 16, "channels": 3},
        "held_out": 0.3,
        "expectations": "images",
        "max_broken": 0.05,
        "near_duplicates": None,
        **changes,
    }
    output, work = tmp_path / "run" / "outputs" / "dataset", tmp_path / "work"
    output.mkdir(parents=True)
    work.mkdir()
    recipe = {"system": "pictures", "seed": 0, "dataset": section, "mixture": None}
    return StageContext(tmp_path / "run", "dataset", recipe, output, work)


def of(folder: Path) -> dict:
    return {"type": "image_folder", "path": str(folder)}


def table(ctx: StageContext, name: str) -> list[dict]:
    return json.loads((ctx.output / "tables" / f"{name}.json").read_text())


def failing(ctx: StageContext) -> dict[str, dict]:
    return {f"{row['expectation']}({row['column']})": row for row in table(ctx, "validation") if not row["passed"]}


def test_what_it_writes(tmp_path, pictures):
    (pictures / "notes.txt").write_text("not a picture")
    ctx = context(tmp_path, of(pictures))
    metrics = body(ctx)
    assert metrics["rows.train"] + metrics["rows.held_out"] == 40
    assert (metrics["classes"], metrics["broken"], metrics["warnings"], metrics["duplicates"]) == (2, 1, 0, 0)
    assert metrics["expectations"] > 5
    assert all(isinstance(value, int | float) for value in metrics.values())
    split = load_split(ctx.output, "held_out")
    assert split.images.shape == (metrics["rows.held_out"], 3, 16, 16)
    assert Image.open(io.BytesIO((ctx.output / "figures" / "examples.png").read_bytes())).size[0] > 200
    assert table(ctx, "broken") == [{"key": "notes.txt", "source": "source", "reason": "not a picture"}]
    assert sum(row["train"] + row["held_out"] for row in table(ctx, "classes")) == 40
    assert all(row["passed"] for row in json.loads((ctx.output / "validation.json").read_text()))
    images, labels, weights = TrainingImages.of_mixture(ctx).decoded
    assert len(images) == len(labels) == len(weights) == metrics["rows.train"]
    assert weights.sum() == pytest.approx(1)


def test_pictures_without_labels(tmp_path):
    for number in range(20):
        save(tmp_path / "flat" / f"{number}.png", number)
    assert body(context(tmp_path, of(tmp_path / "flat")))["classes"] == 0


def test_bad_data_stops_with_what_and_where(tmp_path, pictures):
    save(pictures / "cat" / "tiny.png", 99, size=(2, 2))
    ctx = context(tmp_path, of(pictures))
    with pytest.raises(StageFailed, match=r"(?s)does not meet.*column_values_to_be_between\(width\).*cat/tiny.png"):
        body(ctx)
    found = failing(ctx)
    assert found["column_values_to_be_between(width)"]["examples"] == ["cat/tiny.png"]
    assert found["column_values_to_be_between(height)"]["unexpected"] == 1


def test_a_warning_does_not_stop(tmp_path, pictures):
    for number in range(20):
        save(pictures / "dog" / f"wide{number}.png", 200 + number, size=(300, 10))
    ctx = context(tmp_path, of(pictures))
    assert body(ctx)["warnings"] == 1
    assert list(failing(ctx)) == ["column_values_to_be_between(aspect)"]


class Careless(Source):
    """A source of somebody's own that never looked at what it yields."""

    def __init__(self) -> None: ...

    def read(self, part: Part):
        for number in range(30):
            buffer = io.BytesIO()
            Image.fromarray(np.full((9, 9), number * 8, np.uint8)).save(buffer, "PNG")
            yield Sample(f"n/{number}", buffer.getvalue() if number != 4 else b"garbage", label="x")


def test_a_source_that_yields_garbage_is_caught(tmp_path):
    ctx = context(tmp_path, {"type": f"{__name__}:Careless"})
    with pytest.raises(StageFailed, match=r"column_values_to_not_be_null\(width\).*n/4"):
        body(ctx)
    assert failing(ctx)["column_values_to_not_be_null(width)"]["examples"] == ["n/4"]


def test_pictures_of_nothing_are_a_warning(tmp_path):
    for number in range(20):
        path = tmp_path / "flat" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16), number).save(path)
    ctx = context(tmp_path, of(tmp_path / "flat"))
    body(ctx)
    assert "column_values_to_be_between(contrast)" in failing(ctx)


def test_many_broken_samples_stop(tmp_path, pictures):
    for number in range(10):
        (pictures / f"broken{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"10 of 50 samples are broken.*broken0.png: the file is empty"):
        body(context(tmp_path, of(pictures)))


@pytest.mark.parametrize("drop", [False, True])
def test_near_duplicates_are_left_out_where_the_recipe_says_so_and_are_no_fault(tmp_path, drop):
    words = [f"word{number}" for number in range(3000)]
    texts = [" ".join(np.random.default_rng(number).choice(words, 300)) for number in range(40)]
    texts += [f"{text} again" for text in texts[:15]]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines)
    near = {"threshold": 0.8, "shingle": 5, "unit": "word", "permutations": 128, "drop": drop}
    source = {"type": "jsonl", "path": str(tmp_path / "texts.jsonl"), "text": "text"}
    ctx = context(tmp_path, source, image=None, expectations="texts", near_duplicates=near, max_broken=0.0)
    metrics = body(ctx)
    assert metrics["near_duplicates"] == 15
    assert metrics["quarantined"] == (15 if drop else 0)
    assert metrics["rows.train"] + metrics["rows.held_out"] == (40 if drop else 55)
    assert sum("near-duplicate of" in row["reason"] for row in table(ctx, "broken")) == (15 if drop else 0)


def test_an_unknown_suite_is_named(tmp_path, pictures):
    with pytest.raises(SuiteError, match=r"no suite 'pictures' \(there are: arrays, audio, images, texts, tokens; or"):
        body(context(tmp_path, of(pictures), expectations="pictures"))


def test_a_target_beside_the_source(tmp_path, pictures):
    for number in range(30, 60):  # ten of them are in the source as well
        save(tmp_path / "target" / "cat" / f"{number}.png", number)
    ctx = context(tmp_path, of(pictures), target=of(tmp_path / "target"))
    metrics = body(ctx)
    assert metrics["rows.train"] == 30
    assert metrics["rows.target"] + metrics["rows.held_out"] == 30
    assert metrics["duplicates"] == 10
