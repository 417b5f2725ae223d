"""NumPy's archives: rows of arrays as samples, their labels, and what can be wrong with them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from components import registry
from components.data.locations import SourceError
from components.data.sources import _parts
from components.interfaces import Broken, Sample, Source
from tests._sources import array, broken, put, read

VALUES = np.arange(6 * 2 * 3, dtype=np.float32).reshape(6, 2, 3)


def archive(squeeze: bool = False, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if squeeze else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def source(place: Path, **config) -> Source:
    return registry.build(Source, {"type": "numpy_archive", "path": str(place), **config})


def rows(found: dict[str, Sample | Broken]) -> np.ndarray:
    return np.stack([np.load(io.BytesIO(sample.array)) for sample in found.values()])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [np.float32, np.int16, ">i4", np.complex64, bool, np.float16])
def test_rows_keep_values_and_types(tmp_path, order, kind):
    values = np.asarray(VALUES, dtype=kind, order=order)
    found = read(source(put(tmp_path, {"x.npy": array(values)})))
    assert list(found) == [f"x.npy#{n}" for n in range(6)]
    np.testing.assert_array_equal(rows(found), values)
    assert rows(found).dtype == np.dtype(kind).newbyteorder("=") or rows(found).dtype == np.dtype(kind)


@pytest.mark.parametrize("squeeze", [False, True])
def test_the_named_array_of_an_archive_with_its_labels(tmp_path, squeeze):
    data = archive(squeeze, moves=VALUES, kinds=np.array(["run", "walk", "", "sit", "é", "run"]), other=np.arange(3))
    found = read(source(put(tmp_path, {"x.npz": data}), array="moves", labels="kinds"))
    np.testing.assert_array_equal(rows(found), VALUES)
    assert [sample.label for sample in found.values()] == ["run", "walk", None, "sit", "é", "run"]


@pytest.mark.parametrize(
    ("labels", "found"),
    [(np.arange(6), list("012345")), (np.array([b"a", b"b", b"", b"d", b"e", b"f"]), ["a", "b", None, "d", "e", "f"]),
     (np.arange(6) / 2, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]), (np.arange(6) % 2 == 0, ["True", "False"] * 3)],
)  # fmt: skip
def test_labels_of_any_plain_type(tmp_path, labels, found):
    samples = read(source(put(tmp_path, {"x.npz": archive(x=VALUES, y=labels)}), array="x", labels="y"))
    assert [sample.label for sample in samples.values()] == found


def test_an_archive_with_one_array_needs_no_name(tmp_path):
    np.testing.assert_array_equal(rows(read(source(put(tmp_path, {"x.npz": archive(anything=VALUES)})))), VALUES)


@pytest.mark.parametrize("labels", ["y", "y.npy"])
def test_labels_in_a_file_beside(tmp_path, labels):
    put(
        tmp_path,
        {
            "a/x.npy": array(VALUES),
            "a/y.npy": array(list("abcdef")),
            "b/x.npy": array(VALUES),
            "b/y.npy": array(range(6)),
        },
    )
    found = read(source(tmp_path, labels=labels))
    assert "".join(sample.label for sample in found.values()) == "abcdef012345"
    assert [sample.label for sample in read(source(tmp_path / "a" / "x.npy", labels=labels)).values()] == list("abcdef")


def test_a_large_file_is_divided_by_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "BYTES", 2 * VALUES[0].nbytes)
    put(tmp_path, {"a.npy": array(VALUES), "b.npy": array(np.asfortranarray(VALUES)), "c.npz": archive(x=VALUES)})
    whole = source(tmp_path, labels=None)
    parts = whole.parts()
    assert [(part.files, part.start, part.stop) for part in parts] == [
        (("a.npy",), 0, 2), (("a.npy",), 2, 4), (("a.npy",), 4, 6), (("b.npy",), 0, None), (("c.npz",), 0, None),
    ]  # fmt: skip
    assert [sample.key for sample in whole.read(parts[1])] == ["a.npy#2", "a.npy#3"]
    np.testing.assert_array_equal(rows(read(whole)), np.concatenate([VALUES] * 3))


def test_only_the_rows_of_a_part_are_in_memory(tmp_path):
    import tracemalloc

    large = source(
        put(tmp_path, {"x.npy": array(np.zeros((400, 40_000))), "x.npz": archive(x=np.zeros((400, 40_000)))})
    )
    tracemalloc.start()
    try:
        assert sum(1 for _ in large.samples()) == 800
        assert tracemalloc.get_traced_memory()[1] < 12_000_000  # of 256 MB
    finally:
        tracemalloc.stop()


def test_faults(tmp_path):
    objects = io.BytesIO()
    np.save(objects, np.array([[{}], [{}]], dtype=object), allow_pickle=True)
    many = array(np.random.default_rng(0).random((50, 100)))
    squeezed = bytearray(archive(True, x=np.random.default_rng(0).random((50, 100))))
    squeezed[20_000:20_100] = bytes(100)
    files = {
        "empty.npy": b"", "text.npy": "hello", "objects.npy": objects.getvalue(), "cut.npy": many[:20_000], "header.npy": many[:40],
        "scalar.npy": array(3.0), "line.npy": array([1.0, 2.0]), "none.npy": array(np.zeros((0, 3))),
        "two.npz": archive(a=VALUES, b=VALUES),
        "cut.npz": archive(x=VALUES)[:-30], "torn.npz": bytes(squeezed), "fcut.npy": array(np.asfortranarray(VALUES))[:-4],
        "objects.npz": archive(x=np.zeros((2, 2))), "good.npy": array(VALUES),
    }  # fmt: skip
    found = read(source(put(tmp_path, files)))
    reasons = broken(found)
    assert len([key for key in found if key.startswith("cut.npy#")]) == (20_000 - 128) // 800
    assert reasons.pop("cut.npy") == "damaged: it ends at row 24 of 50"
    assert reasons.pop("torn.npz").startswith("damaged from row ")
    assert reasons.pop("text.npy").startswith("not an array in .npy format")
    assert reasons.pop("header.npy").startswith("not an array in .npy format")
    assert reasons.pop("cut.npz").startswith("damaged")
    assert reasons == {
        "empty.npy": "the file is empty",
        "objects.npy": "the array holds Python objects, which would have to be unpickled",
        "scalar.npy": "the array has the shape (); expected rows of numbers, [samples, ...]",
        "line.npy": "the array has the shape (2,); expected rows of numbers, [samples, ...]",
        "none.npy": "the array has the shape (0, 3); expected rows of numbers, [samples, ...]",
        "two.npz": "it holds several arrays; say which with `array` (there are: a, b)",
        "fcut.npy": "damaged: it ends before its 6 rows do",
    }
    assert len([key for key in found if key.startswith("good.npy")]) == 6


def test_names_and_labels_that_do_not_fit(tmp_path):
    put(tmp_path, {"x.npz": archive(x=VALUES, y=np.arange(5)), "z.npy": array(VALUES)})
    found = broken(read(source(tmp_path, array="x", labels="y")))
    assert found["x.npz"] == "'y' has the shape (5,); expected one label for each of 6 rows"
    assert found["z.npy"] == "its labels, y.npy beside it: cannot be read: No such file or directory"
    assert broken(read(source(tmp_path / "x.npz", array="w"))) == {"x.npz": "there is no array 'w' (there are: x, y)"}
    objects = archive(x=VALUES, y=np.array([{}] * 6, dtype=object))
    (reason,) = broken(read(source(put(tmp_path / "o", {"o.npz": objects}), array="x", labels="y"))).values()
    assert reason.startswith("its labels cannot be read: Object arrays cannot be loaded")
    with pytest.raises(SourceError, match="holds no arrays"):
        source(put(tmp_path / "none", {"x.txt": "x"})).parts()
