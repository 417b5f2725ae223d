"""The data set on disk: the same bytes for the same input however it is written, duplicates in one split only, a damaged
share that stops."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.data import shards, writing
from components.data.files import Folder
from components.data.shards import SPLITS, DataError
from components.data.writing import Job, Layout, Whole, Written, write_part
from components.interfaces import Broken, ImageFormat, Part, Sample, Source

IMAGE = ImageFormat(8, 1)


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Numbered(Source):
    """Pictures `start` to `stop`, `step` a part; the first `broken` of `bad` cannot be read."""

    def __init__(
        self, *, start: int = 0, stop: int, origin: str = "s", labels: str = "ab", broken: int = 0, step: int = 25
    ) -> None:
        self.start, self.stop, self.origin, self.labels, self.broken, self.step = (
            start,
            stop,
            origin,
            labels,
            broken,
            step,
        )

    def parts(self) -> Sequence[Part]:
        return [Part((), n, min(n + self.step, self.stop)) for n in range(self.start, self.stop, self.step)]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        assert part.stop is not None
        if part.start == self.start:
            yield from (Broken(f"bad/{n}", "not a picture") for n in range(self.broken))
        for n in range(part.start, part.stop):
            label = self.labels[n % len(self.labels)]
            yield Sample(f"{self.origin}/{n}", picture(n), label=None if label == "-" else label)


class Twice(Numbered):
    """The same pictures again, under other keys, in parts of their own."""

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for sample in super().read(part):
            assert isinstance(sample, Sample)
            yield sample
            yield replace(sample, key=f"again/{sample.key}")


def spec(kind: str = "Numbered", **config: Any) -> dict[str, Any]:
    return {"type": f"{__name__}:{kind}", **config}


def jobs(source: dict[str, Any], target: dict[str, Any] | None = None) -> list[Job]:
    from components import registry

    made = []
    for origin, given in (("target", target), ("source", source)):
        for part in registry.build(Source, given).parts() if given else ():
            made.append(Job(len(made), origin, given, part))
    return made


def write(
    folder: Path, source: dict[str, Any], target: dict[str, Any] | None = None, held_out: float = 0.2, mix: int = 0
) -> tuple[Whole, dict[str, Any]]:
    """As the stage does; `mix` seeds the order in which the parts are written."""
    layout = Layout(("image",), held_out, target is not None)
    done: dict[int, Written] = {}
    planned = jobs(source, target)
    order = list(planned)
    random.Random(mix).shuffle(order)
    for job in order:
        done[job.number] = write_part(job, layout, Folder(folder))
    whole = Whole([done[job.number] for job in planned])
    for number, digests in whole.repeated(lambda n: hashes(done[n])).items():
        done[number] = write_part(replace(planned[number], drop=dict.fromkeys(digests)), layout, Folder(folder))
    whole = Whole([done[job.number] for job in planned])
    kept = {put.name for put in whole.stored()}
    for name in Folder(folder).names():  # a store would keep them until they are collected
        if name not in kept:
            (folder / name).unlink()
    about = whole.summary(layout, IMAGE)
    (folder / "dataset.json").write_text(json.dumps(about))
    return whole, about


def hashes(part: Written) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(part.index)).column("hash").to_pylist()


def contents(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in Folder(folder).names()}


def every(folder: Path) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in shards.rows(folder, split)]


def test_the_same_input_gives_the_same_bytes_in_whatever_order_its_parts_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROWS_PER_SHARD", 10)
    for mix, name in enumerate("abc"):
        write(tmp_path / name, spec("Twice", stop=100), spec(start=100, stop=150, origin="t"), mix=mix)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert len(shards.shard_names(tmp_path / "a", "train")) >= 10


def test_every_sample_comes_back(tmp_path):
    whole, about = write(tmp_path / "d", spec(stop=100))
    found = every(tmp_path / "d")
    assert {row["key"]: row["image"]["bytes"] for row in found} == {f"s/{n}": picture(n) for n in range(100)}
    assert sum(split["rows"] for split in about["splits"].values()) == whole.read == 100
    assert all(row["hash"] == hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in found)
    held_out = shards.load_split(tmp_path / "d", "held_out")
    assert 8 < len(held_out.images) < 35
    number = int(held_out.keys[0].split("/")[1])
    assert np.array_equal(held_out.images[0, 0], np.asarray(Image.open(io.BytesIO(picture(number)))))
    assert shards.load_split(tmp_path / "d", "target").images.shape == (0, 1, 8, 8)
    assert shards.image_format(tmp_path / "d") == IMAGE


def test_the_index_says_where_each_sample_stands_and_what_it_is(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(writing, "ROWS_PER_SHARD", 7)
    write(tmp_path / "d", spec(stop=60))
    indexed = [row for table in shards.index(tmp_path / "d") for row in table.to_pylist()]
    assert len(indexed) == 60
    for row in indexed:
        stored = pq.read_table(tmp_path / "d" / row["shard"]).to_pylist()[row["row"]]
        assert (stored["key"], stored["hash"], stored["label"]) == (row["key"], row["hash"], row["label"])
        assert row["shard"].startswith(row["split"] + "/")
        assert (row["bytes"], row["width"]) == (len(stored["image"]["bytes"]), 8)


def test_a_split_depends_on_content_alone(tmp_path):
    write(tmp_path / "a", spec(stop=60))
    write(tmp_path / "b", spec(start=20, stop=90, origin="other", step=9))
    where = [{row["hash"]: split for split in SPLITS for row in shards.rows(tmp_path / name, split)} for name in "ab"]
    common = set(where[0]) & set(where[1])
    assert len(common) == 40
    assert all(where[0][digest] == where[1][digest] for digest in common)


def test_duplicates_stay_once_in_the_target_before_the_source(tmp_path):
    whole, about = write(tmp_path / "d", spec("Twice", stop=80), spec("Twice", start=60, stop=120, origin="t"))
    found = [row["hash"] for row in every(tmp_path / "d")]
    assert len(found) == len(set(found)) == 120
    assert about["duplicates"] == whole.read - 120 == 80 + 60 + 20
    of_target = {hashlib.sha256(picture(n)).hexdigest() for n in range(60, 120)}
    assert not of_target & {row["hash"] for row in shards.rows(tmp_path / "d", "train")}


def test_equal_beginnings_of_hashes_are_no_duplicates(tmp_path):
    parts = [write_part(job, Layout(("image",), 0.2, False), Folder(tmp_path)) for job in jobs(spec(stop=50))]
    parts[1].hashes[3] = parts[0].hashes[5]  # a collision in the first eight bytes
    assert Whole(parts).repeated(lambda number: hashes(parts[number])) == {}


def test_quarantined_samples_leave_the_shards_and_are_named(tmp_path):
    (job,) = jobs(spec(stop=25))
    digest = hashlib.sha256(picture(3)).hexdigest()
    layout = Layout(("image",), 0.2, False)
    written = write_part(replace(job, drop={digest: "quarantine: too dark"}), layout, Folder(tmp_path))
    assert (written.quarantined, written.broken, sum(written.rows.values())) == (1, 0, 24)
    assert written.named == [{"key": "s/3", "source": "source", "reason": "quarantine: too dark"}]
    assert digest not in hashes(written)


def test_what_was_written_of_a_part_survives_as_a_file(tmp_path):
    (job,) = jobs(spec(stop=25, broken=1))
    written = write_part(job, Layout(("image",), 0.2, False), Folder(tmp_path))
    again = Written.of(json.loads(json.dumps(written.about())), written.index, written.hashes)
    assert again == written


def test_classes_of_the_target_come_first(tmp_path):
    source, target = spec(stop=50, labels="axz"), spec(start=50, stop=100, origin="t", labels="zy")
    _, about = write(tmp_path / "d", source, target)
    assert about["classes"] == ["y", "z", "a", "x"]
    assert about["target_classes"] == ["y", "z"]
    assert set(shards.load_split(tmp_path / "d", "train").labels.tolist()) == {1, 2, 3}


def test_a_sample_without_label_has_the_null_class(tmp_path):
    write(tmp_path / "d", spec(stop=70, labels="ab-"))
    train = shards.load_split(tmp_path / "d", "train")
    assert {int(label) for key, label in zip(train.keys, train.labels, strict=True) if int(key[2:]) % 3 == 2} == {2}


def test_hugging_face_reads_the_shards_with_its_features(tmp_path):
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "d", spec(stop=30))
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "d/train/*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    rows = list(shards.rows(tmp_path / "d", "train"))
    assert loaded["key"] == [row["key"] for row in rows]
    assert np.array_equal(np.asarray(loaded[0]["image"]), np.asarray(Image.open(io.BytesIO(rows[0]["image"]["bytes"]))))


def test_large_samples_make_small_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "BYTES_PER_SHARD", 1000)
    _, about = write(tmp_path / "d", spec(stop=50))
    assert about["splits"]["train"]["shards"] > 3
    assert len(list(shards.rows(tmp_path / "d", "train"))) == about["splits"]["train"]["rows"]


def test_broken_samples_are_named_and_stop_when_there_are_many(tmp_path):
    layout = Layout(("image",), 0.2, False)
    whole, about = write(tmp_path / "few", spec(stop=95, broken=5))
    whole.check(layout, max_broken=0.05)
    named = [{"key": f"bad/{n}", "source": "source", "reason": "not a picture"} for n in range(5)]
    assert (about["broken"], about["refused"]) == (5, named)
    whole, _ = write(tmp_path / "many", spec(stop=94, broken=5))
    with pytest.raises(DataError, match=r"5 of 99 samples are broken.*bad/0: not a picture.*dataset.max_broken"):
        whole.check(layout, max_broken=0.05)


@pytest.mark.parametrize(("n", "held_out", "split"), [(0, 0.2, "train"), (3, 0.001, "held_out"), (3, 0.999, "train")])
def test_an_empty_split_is_refused(tmp_path, n, held_out, split):
    (tmp_path / "d").mkdir()
    whole, _ = write(tmp_path / "d", spec(stop=n), held_out=held_out)
    with pytest.raises(DataError, match=f"the split '{split}' is empty"):
        whole.check(Layout(("image",), held_out, False), 0.05)


def test_what_is_no_data_set_says_so(tmp_path):
    with pytest.raises(DataError, match=r"dataset.json is missing"):
        shards.load_split(tmp_path, "train")


def test_a_sample_of_several_modalities_has_one_hash_that_depends_on_each(tmp_path):
    both = Sample("k", b"picture", text="words")
    assert shards.content_hash(Sample("k", b"picture")) == hashlib.sha256(b"picture").hexdigest()
    assert shards.content_hash(Sample("k", text="wörds")) == hashlib.sha256("wörds".encode()).hexdigest()
    others = [replace(both, text="other"), replace(both, image=b"other"), replace(both, audio=b"words", text=None)]
    assert len({shards.content_hash(sample) for sample in [both, *others]}) == 4
