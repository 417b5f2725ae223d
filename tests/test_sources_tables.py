"""Parquet, Arrow, Feather and what Hugging Face's library saves: the samples in them, and everything that can be wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from components import registry
from components.data.locations import SourceError
from components.data.sources import _parts
from components.data.sources.parquet import Parquet
from components.interfaces import Broken, Source
from tests._sources import array, broken, picture, put, read, sound, table

ROWS = [picture(seed=n) for n in range(5)]


def parquet(folder: Path, **config) -> Parquet:
    source = registry.build(Source, {"type": "parquet", "path": str(folder), **config})
    assert isinstance(source, Parquet)
    return source


def arrow(content: pa.Table, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "feather":
        feather.write_feather(content, buffer)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(buffer, content.schema) as writer:
            writer.write_table(content, max_chunksize=2)
    return buffer.getvalue()


def test_pictures_with_labels_and_captions(tmp_path):
    columns = {"image": ROWS, "label": ["a", None, "b", "", "a"], "caption": ["one", None, "", "four", "é"]}
    found = read(parquet(put(tmp_path, {"sub/x y.parquet": table(columns)})))
    assert list(found) == [f"sub/x y.parquet#{n}" for n in range(5)]
    assert [sample.image for sample in found.values()] == ROWS
    assert [sample.label for sample in found.values()] == ["a", None, "b", None, "a"]
    assert [sample.caption for sample in found.values()] == ["one", None, None, "four", "é"]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])]
)
def test_encoded_bytes_in_each_of_their_forms(tmp_path, kind):
    values = [{"bytes": data, "path": "x.png"} if pa.types.is_struct(kind) else data for data in ROWS]
    found = read(parquet(put(tmp_path, {"x.parquet": table({"image": pa.array(values, kind)})})))
    assert [sample.image for sample in found.values()] == ROWS


@pytest.mark.parametrize("kind", ["stream", "file", "feather"])
@pytest.mark.parametrize("name", ["x.arrow", "x.feather", "x.parquet"])
def test_the_content_says_what_a_file_is(tmp_path, kind, name):
    content = pa.table({"image": ROWS, "label": pa.array(list("abcab")).dictionary_encode()})
    found = read(parquet(put(tmp_path, {name: arrow(content, kind)})))
    assert [sample.image for sample in found.values()] == ROWS
    assert [sample.label for sample in found.values()] == list("abcab")


def test_several_modalities_and_names_of_columns(tmp_path):
    sounds = [sound(seed=n) for n in range(3)]
    columns = {
        "picture": ROWS[:3],
        "wav": sounds,
        "words": ["a", "b", "c"],
        "move": [[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]],
    }
    config = {"image": "picture", "audio": "wav", "text": "words", "array": "move", "label": "words"}
    modalities = ["image", "text", "audio", "array"]
    source = parquet(put(tmp_path, {"x.parquet": table(columns)}), modalities=modalities, **config)
    assert list(source.modalities) == modalities
    for number, sample in enumerate(read(source).values()):
        assert (sample.image, sample.audio, sample.text) == (ROWS[number], sounds[number], "abc"[number])
        assert sample.label == "abc"[number]
        values = np.load(io.BytesIO(sample.array))
        assert values.tolist() == columns["move"][number] and values.dtype == np.float64


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.list_(pa.int16())), pa.list_(pa.list_(pa.int16(), 2), 2), pa.large_list(pa.list_(pa.int16()))]
)
def test_lists_of_numbers_are_arrays_of_their_type(tmp_path, kind):
    column = pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], kind)
    first, second = read(parquet(put(tmp_path, {"x.parquet": table({"array": column})}), modalities=["array"])).values()
    assert np.load(io.BytesIO(first.array)).dtype == np.int16
    assert np.load(io.BytesIO(second.array)).tolist() == [[5, 6], [7, 8]]


def test_arrays_in_npy_format_stay_as_they_are(tmp_path):
    data = array(np.eye(3))
    (sample,) = read(parquet(put(tmp_path, {"x.parquet": table({"array": [data]})}), modalities=["array"])).values()
    assert sample.array == data


# ----------------------------------------------------------------------------------------- the `datasets` library's


def test_a_saved_data_set_and_a_dictionary_of_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": data, "path": None} for data in ROWS], "label": [0, 1, 1, -1, None]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    found = read(parquet(tmp_path / "one"))
    assert list(found) == [f"data-00000-of-00002.arrow#{n}" for n in range(3)] + [
        f"data-00001-of-00002.arrow#{n}" for n in range(2)
    ]
    assert [sample.image for sample in found.values()] == ROWS
    assert [sample.label for sample in found.values()] == ["cat", "dog", "dog", None, None]
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "both")
    assert len(read(parquet(tmp_path / "both"))) == 10
    assert len(read(parquet(tmp_path / "both" / "test"))) == 5
    saved.to_parquet(tmp_path / "x.parquet")
    assert [sample.label for sample in read(parquet(tmp_path / "x.parquet")).values()] == [
        "cat",
        "dog",
        "dog",
        None,
        None,
    ]


def test_its_own_column_types(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"array": datasets.Array2D(shape=(2, 2), dtype="float32")})
    datasets.Dataset.from_dict({"array": [[[1, 2], [3, 4]]] * 3}, features=features).save_to_disk(tmp_path)
    for sample in read(parquet(tmp_path, modalities=["array"])).values():
        values = np.load(io.BytesIO(sample.array))
        assert values.tolist() == [[1, 2], [3, 4]] and values.dtype == np.float32


def test_caches_beside_a_saved_data_set_are_not_its_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path)
    saved = datasets.load_from_disk(tmp_path)
    saved.map(lambda row: {"text": row["text"] * 2}, cache_file_name=str(tmp_path / "cache-123.arrow"))
    assert (tmp_path / "cache-123.arrow").is_file()
    assert [sample.text for sample in read(parquet(tmp_path, modalities=["text"])).values()] == ["a", "b"]


@pytest.mark.parametrize("state", ["{", "[1]", "{}", '{"_data_files": 3}'])
def test_a_file_called_state_of_another_program_changes_nothing(tmp_path, state):
    put(tmp_path, {"x.arrow": arrow(pa.table({"text": ["a"]}), "stream"), "state.json": state})
    assert len(read(parquet(tmp_path, modalities=["text"]))) == 1


@pytest.mark.parametrize("about", [b"{", b"[]", b'{"info": {"features": []}}', b'{"info": {"features": {"label": 3}}}'])
def test_strange_notes_beside_the_columns_change_nothing(tmp_path, about):
    content = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata({b"huggingface": about})
    (sample,) = read(parquet(put(tmp_path, {"x.arrow": arrow(content, "stream")}), modalities=["text"])).values()
    assert sample.label == "1"


# ------------------------------------------------------------------------------------------------------------ parts


def test_a_large_file_is_divided_between_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "BYTES", 3000)
    data = table({"image": [picture(seed=n) for n in range(12)]}, rows_of_a_group=2)
    source = parquet(
        put(
            tmp_path,
            {"a.parquet": table({"image": ROWS[:1]}), "b.parquet": data, "c.parquet": table({"image": ROWS[:1]})},
        )
    )
    parts = source.parts()
    assert [part.files for part in parts] == [("a.parquet",), *[("b.parquet",)] * (len(parts) - 2), ("c.parquet",)]
    bounds = [(part.start, part.stop) for part in parts[1:-1]]
    assert len(bounds) > 2
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])] and bounds[-1][1] == 12
    assert [s.key for s in source.read(parts[2])] == [f"b.parquet#{n}" for n in range(*bounds[1])]


def test_only_the_row_groups_and_columns_of_a_part_are_read(tmp_path, monkeypatch):
    """By what is read of the file: a column that is not wanted, and other row groups, are many times larger."""
    noise = np.random.default_rng(0).bytes(200_000)
    data = table({"text": ["a", "b", "c"], "noise": [noise] * 3, "more": [noise[::-1]] * 3}, rows_of_a_group=1)
    source = parquet(put(tmp_path, {"x.parquet": data}), modalities=["text"])
    total = 0

    class Counting(io.FileIO):
        def readinto(self, buffer):
            nonlocal total
            total += (count := super().readinto(buffer))
            return count

        def read(self, size=-1):
            nonlocal total
            data = super().read(size)
            total += len(data)
            return data

    monkeypatch.setattr("components.data.locations.open", lambda path, name: Counting(Path(path) / name))
    assert len(list(source.samples())) == 3
    assert 0 < total < 100_000 < len(data) / 5  # the index alone takes 64 kB


# ----------------------------------------------------------------------------------------------------------- faults


def test_everything_that_can_be_wrong_with_a_row(tmp_path):
    values = [
        {"bytes": ROWS[0], "path": None},
        {"bytes": b"", "path": None},
        {"bytes": b"hello", "path": None},
        {"bytes": ROWS[1][:-200], "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": None},
        None,
    ]
    found = read(parquet(put(tmp_path, {"x.parquet": table({"image": values})})))
    reasons = broken(found)
    assert set(found) - set(reasons) == {"x.parquet#0"}
    assert reasons["x.parquet#1"] == "the file is empty"
    assert reasons["x.parquet#2"] == "not a picture"
    assert reasons["x.parquet#3"].startswith("damaged")
    assert reasons["x.parquet#4"] == "'image' names the file /etc/passwd, but holds no bytes"
    assert reasons["x.parquet#5"] == reasons["x.parquet#6"] == "there is nothing in image"


def test_texts_and_arrays_that_are_none(tmp_path):
    ragged = [[[1.0], [2.0, 3.0]], [], None, [[4.0]]]
    data = table({"text": ["", " \n", "a\0b", "fine"], "array": ragged})
    texts = broken(read(parquet(put(tmp_path, {"x.parquet": data}), modalities=["text"])))
    assert texts == {
        "x.parquet#0": "it holds no text",
        "x.parquet#1": "it holds no text",
        "x.parquet#2": "binary data, not text",
    }
    arrays = broken(read(parquet(tmp_path, modalities=["array"])))
    assert set(arrays) == {"x.parquet#0", "x.parquet#1", "x.parquet#2"}
    assert "is no array" in arrays["x.parquet#0"] and "empty" in arrays["x.parquet#1"]


def test_an_array_that_would_have_to_be_unpickled_is_broken(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (reason,) = broken(
        read(parquet(put(tmp_path, {"x.parquet": table({"array": [buffer.getvalue()]})}), modalities=["array"]))
    ).values()
    assert "Object arrays cannot be loaded" in reason


@pytest.mark.parametrize(
    ("modality", "values", "message"),
    [
        ("image", ["a"], "the column 'image' is string; for image expected binary or struct<bytes, path>"),
        ("audio", [1], "the column 'audio' is int64; for audio expected binary or struct<bytes, path>"),
        ("text", [1], "the column 'text' is int64; for text expected string"),
        ("text", [b"a"], "the column 'text' is binary; for text expected string"),
        ("array", ["a"], "the column 'array' is string; for array expected binary (.npy) or a list of numbers"),
    ],
)
def test_a_column_of_another_type(tmp_path, modality, values, message):
    found = read(parquet(put(tmp_path, {"x.parquet": table({modality: values})}), modalities=[modality]))
    assert broken(found) == {"x.parquet": message}


def test_a_column_that_is_not_there(tmp_path):
    found = read(parquet(put(tmp_path, {"x.parquet": table({"img": ROWS, "id": range(5)})})))
    assert broken(found) == {"x.parquet": "there is no column 'image' for image (there are: img, id)"}


def test_files_that_are_damaged(tmp_path):
    good = table({"text": [f"row {n} " * 50 for n in range(30)]}, rows_of_a_group=10)
    middle = pq.read_metadata(io.BytesIO(good)).row_group(1).column(0).dictionary_page_offset
    torn = bytearray(good)
    torn[middle : middle + 40] = bytes(40)
    stream = arrow(pa.table({"text": [f"row {n}" for n in range(10)]}), "stream")
    files = {"empty.parquet": b"", "cut.parquet": good[:-100], "torn.parquet": bytes(torn), "text.parquet": "hello",
             "cut.arrow": stream[: len(stream) // 2], "old.feather": b"FEA1....", "good.parquet": good}  # fmt: skip
    found = read(parquet(put(tmp_path, files), modalities=["text"]))
    reasons = broken(found)
    assert reasons["empty.parquet"] == "the file is empty"
    assert reasons["cut.parquet"].startswith("damaged")
    assert reasons["text.parquet"].startswith("damaged")
    assert reasons["old.feather"] == "Feather of version 1; write it again with version 2"
    assert reasons["torn.parquet#10"].startswith("damaged: rows 10 to 19 cannot be read")
    assert [key for key in found if key.startswith("torn")] == [
        f"torn.parquet#{n}" for n in [*range(11), *range(20, 30)]
    ]
    (cut,) = [key for key in reasons if key.startswith("cut.arrow")]
    row = int(cut.partition("#")[2])
    assert 0 < row < 10 and reasons[cut].startswith(f"damaged: from row {row} on it cannot be read")
    assert [key for key in found if key.startswith("cut.arrow")] == [f"cut.arrow#{n}" for n in range(row + 1)]
    assert len([key for key in found if key.startswith("good")]) == 30


def test_a_large_file_without_a_readable_index_is_one_part_and_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "BYTES", 1000)
    source = parquet(put(tmp_path, {"x.parquet": table({"image": ROWS})[:-10]}))
    assert len(source.parts()) == 1
    assert list(broken(read(source))) == ["x.parquet"]


def test_a_folder_without_tables(tmp_path):
    with pytest.raises(SourceError, match="holds no tables .*; found 'a.csv', 'b.txt'"):
        parquet(put(tmp_path, {"a.csv": "x", "b.txt": "y"})).parts()


def test_a_table_without_rows_yields_nothing(tmp_path):
    columns = {"image": pa.array([], pa.binary())}
    assert read(
        parquet(put(tmp_path, {"x.parquet": table(columns), "y.parquet": table({"image": ROWS[:1]})}))
    ).keys() == {"y.parquet#0"}


def test_names_of_modalities_are_checked(tmp_path):
    for wrong in ([], ["video"]):
        with pytest.raises(registry.ComponentError):
            parquet(tmp_path, modalities=wrong)


def test_what_it_writes_itself_can_be_a_source_again(tmp_path):
    """Shards of a data set: `image` and `audio` as structs, the other columns as they are called here."""
    rows = [
        {"image": {"bytes": data, "path": "x"}, "label": "a", "caption": "b", "key": str(n)}
        for n, data in enumerate(ROWS)
    ]
    put(tmp_path, {"train/part-00000-000.parquet": table({name: [row[name] for row in rows] for name in rows[0]})})
    assert all(not isinstance(sample, Broken) for sample in read(parquet(tmp_path)).values())
    assert json.dumps([sample.label for sample in read(parquet(tmp_path)).values()]) == '["a", "a", "a", "a", "a"]'
