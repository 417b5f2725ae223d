"""The data set on disk: the same bytes for the same input, duplicates in one split only, a damaged share that stops."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.data import shards
from components.data.shards import DataError
from components.interfaces import Broken, ImageFormat, Sample

IMAGE = ImageFormat(8, 1)


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def samples(start: int, stop: int, origin: str = "s", labels: str = "ab") -> list[Sample | Broken]:
    return [Sample(f"{origin}/{n}", picture(n), label=labels[n % len(labels)]) for n in range(start, stop)]


def write(folder: Path, source, target=None, held_out: float = 0.2, max_broken: float = 0.05) -> shards.Written:
    folder.mkdir(exist_ok=True)
    return shards.write(folder, source, target, IMAGE, held_out, max_broken)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_input_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 30)
    for name in "ab":
        write(tmp_path / name, samples(0, 100), samples(100, 150, "t"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(list((tmp_path / "a" / "train").iterdir())) == 4


def test_every_sample_comes_back(tmp_path):
    given = samples(0, 100)
    written = write(tmp_path / "d", given)
    rows = [row for split in shards.SPLITS for row in shards.rows(tmp_path / "d", split)]
    assert {row["key"]: row["image"]["bytes"] for row in rows} == {s.key: s.image for s in given}
    assert sum(written.rows.values()) == 100
    assert all(row["hash"] == hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in rows)
    held_out = shards.load_split(tmp_path / "d", "held_out")
    assert 8 < len(held_out.images) < 35
    number = int(held_out.keys[0].split("/")[1])
    assert np.array_equal(held_out.images[0, 0], np.asarray(Image.open(io.BytesIO(picture(number)))))
    assert shards.load_split(tmp_path / "d", "target").images.shape == (0, 1, 8, 8)
    assert shards.image_format(tmp_path / "d") == IMAGE


def test_a_split_depends_on_content_alone(tmp_path):
    write(tmp_path / "a", samples(0, 60))
    write(tmp_path / "b", reversed(samples(20, 90, "other")))
    where = [
        {row["hash"]: split for split in shards.SPLITS for row in shards.rows(tmp_path / name, split)} for name in "ab"
    ]
    common = set(where[0]) & set(where[1])
    assert len(common) == 40
    assert all(where[0][digest] == where[1][digest] for digest in common)


def test_duplicates_never_cross_splits(tmp_path):
    source = [*samples(0, 80), *samples(0, 40, "again")]
    target = [*samples(60, 120, "t"), *samples(100, 110, "u")]
    written = write(tmp_path / "d", source, target)
    hashes = [row["hash"] for split in shards.SPLITS for row in shards.rows(tmp_path / "d", split)]
    assert len(hashes) == len(set(hashes)) == 120
    assert written.duplicates == 40 + 20 + 10
    target_hashes = {hashlib.sha256(s.image).hexdigest() for s in target}
    assert not target_hashes & {row["hash"] for row in shards.rows(tmp_path / "d", "train")}


def test_classes_of_the_target_come_first(tmp_path):
    write(tmp_path / "d", samples(0, 50, labels="axz"), samples(50, 100, "t", labels="zy"))
    about = shards.describe(tmp_path / "d")
    assert about["classes"] == ["y", "z", "a", "x"]
    assert about["target_classes"] == ["y", "z"]
    train = shards.load_split(tmp_path / "d", "train")
    assert set(train.labels.tolist()) == {1, 2, 3}


def test_a_sample_without_label_has_the_null_class(tmp_path):
    write(tmp_path / "d", [*samples(0, 50), *(Sample(f"n/{n}", picture(n)) for n in range(50, 70))])
    train = shards.load_split(tmp_path / "d", "train")
    assert {label for key, label in zip(train.keys, train.labels, strict=True) if key.startswith("n/")} == {2}


def test_shards_are_what_hugging_face_reads(tmp_path):
    import pyarrow.parquet as pq

    write(tmp_path / "d", samples(0, 30))
    schema = pq.read_schema(tmp_path / "d" / "train" / "shard-00000.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"dtype": "string", "_type": "Value"}
    assert list(features) == schema.names
    assert [field.name for field in schema.field("image").type] == ["bytes", "path"]


def test_large_pictures_make_small_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BYTES_PER_SHARD", 1000)
    write(tmp_path / "d", samples(0, 50))
    assert shards.describe(tmp_path / "d")["splits"]["train"]["shards"] > 3
    assert len(list(shards.rows(tmp_path / "d", "train"))) == shards.describe(tmp_path / "d")["splits"]["train"]["rows"]


def test_broken_samples_are_named_and_stop_when_there_are_many(tmp_path):
    bad: list[Sample | Broken] = [Broken(f"bad/{n}", "not a picture") for n in range(5)]
    written = write(tmp_path / "few", [*samples(0, 95), *bad], max_broken=0.05)
    assert written.broken == [{"key": f"bad/{n}", "reason": "not a picture"} for n in range(5)]
    assert shards.describe(tmp_path / "few")["broken"] == written.broken
    with pytest.raises(DataError, match=r"5 of 99 samples are broken.*bad/0: not a picture.*dataset.max_broken"):
        write(tmp_path / "many", [*samples(0, 94), *bad], max_broken=0.05)


@pytest.mark.parametrize(("n", "held_out", "split"), [(0, 0.2, "train"), (3, 0.001, "held_out"), (3, 0.999, "train")])
def test_an_empty_split_is_refused(tmp_path, n, held_out, split):
    with pytest.raises(DataError, match=f"the split '{split}' is empty"):
        write(tmp_path / "d", samples(0, n), held_out=held_out)


def test_what_is_no_data_set_says_so(tmp_path):
    with pytest.raises(DataError, match=r"dataset.json is missing"):
        shards.load_split(tmp_path, "train")
