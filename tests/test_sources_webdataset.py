"""WebDataset's tars: what is a sample, and every way in which a tar can be damaged or mean harm."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from components import registry
from components.data.locations import SourceError
from components.interfaces import Broken, Sample, Source
from tests._sources import array, broken, picture, put, read, sound, tar

PNG = [picture(seed=n) for n in range(4)]


def webdataset(folder: Path, *modalities: str) -> Source:
    config = {"modalities": list(modalities)} if modalities else {}
    return registry.build(Source, {"type": "webdataset", "path": str(folder), **config})


def of(folder: Path, members, *modalities: str) -> dict[str, Sample | Broken]:
    return read(webdataset(put(folder, {"x.tar": tar(members)}), *modalities))


def test_neighbours_of_one_name_are_a_sample(tmp_path):
    members = [
        ("a/0.png", PNG[0]),
        ("a/0.cls", b"7\n"),
        ("a/0.txt", b" two words \n"),
        ("b/0.PNG", PNG[1]),
        ("b/1.jpg", PNG[2]),
    ]
    found = of(tmp_path, members)
    assert found == {
        "x.tar/a/0": Sample("x.tar/a/0", PNG[0], label="7", caption="two words"),
        "x.tar/b/0": Sample("x.tar/b/0", PNG[1]),
        "x.tar/b/1": Sample("x.tar/b/1", PNG[2]),
    }


def test_what_the_library_itself_writes(tmp_path):
    library = pytest.importorskip("webdataset")
    with library.TarWriter(str(tmp_path / "x.tar")) as writer:
        for number, data in enumerate(PNG):
            writer.write(
                {"__key__": f"sample{number:04d}", "png": data, "cls": number, "json": {"caption": f"picture {number}"}}
            )
    found = read(webdataset(tmp_path))
    assert [sample.image for sample in found.values()] == PNG
    assert [(s.label, s.caption) for s in found.values()] == [(str(n), f"picture {n}") for n in range(4)]


def test_json_says_label_and_caption_and_the_other_files_have_the_last_word(tmp_path):
    about = b'{"label": 3, "caption": "from json", "width": 20, "text": "a text"}'
    members = [
        ("0.json", about),
        ("0.png", PNG[0]),
        ("1.png", PNG[1]),
        ("1.txt", b"own"),
        ("1.cls", b"x"),
        ("1.json", about),
    ]
    first, second = of(tmp_path, members).values()
    assert (first.label, first.caption, second.label, second.caption) == ("3", "from json", "x", "own")
    assert first.text is None


def test_the_modalities_decide_what_a_file_means(tmp_path):
    members = [
        ("0.wav", sound()),
        ("0.npy", array([1.0])),
        ("0.txt", b"hello"),
        ("0.png", PNG[0]),
        ("0.mp4", b"?"),
        ("0.cls", b""),
    ]
    assert of(tmp_path, members)["x.tar/0"] == Sample("x.tar/0", PNG[0], caption="hello")
    every = of(tmp_path, members, "image", "text", "audio", "array")["x.tar/0"]
    assert every == Sample("x.tar/0", PNG[0], text="hello", audio=sound(), array=array([1.0]))
    assert of(tmp_path, members, "text")["x.tar/0"] == Sample("x.tar/0", text="hello")
    assert of(tmp_path, [("0.json", b'{"text": "in json"}')], "text")["x.tar/0"].text == "in json"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_compressed_ones_long_names_and_unicode(tmp_path, mode, kind, monkeypatch):
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", kind)
    name = "./" + "/".join(["ordner mit ü und 字"] * 4) + "/0 1.png"
    found = read(webdataset(put(tmp_path, {"x.tar.gz": tar({name: PNG[0]}, mode)})))
    assert list(found) == ["x.tar.gz/" + name[2:-4]]


def test_each_tar_is_a_part_and_a_tar_may_be_named_directly(tmp_path):
    put(tmp_path, {"b/0.tgz": tar({"0.png": PNG[0]}, "w:gz"), "a.tar": tar({"0.png": PNG[1]}), "README.md": "x"})
    source = webdataset(tmp_path)
    assert [part.files for part in source.parts()] == [("a.tar",), ("b/0.tgz",)]
    assert list(read(webdataset(tmp_path / "a.tar"))) == ["a.tar/0"]
    with pytest.raises(SourceError, match="holds no tars"):
        webdataset(put(tmp_path / "none", {"x.txt": "x"})).parts()


# ----------------------------------------------------------------------------------------------------------- faults


def cut_after(count: int, members: dict[str, bytes], extra: int = 0) -> bytes:
    """A tar that ends `extra` bytes after its first `count` files."""
    data = tar(members)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        ends = [member.offset_data + (member.size + 511) // 512 * 512 for member in file.getmembers()]
    return data[: ends[count - 1] + extra]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            0,
            "damaged: the mark at its end is missing (samples before it: 2; of '2', the next one, something may be missing)",
        ),
        (
            100,
            "damaged: the mark at its end is missing (samples before it: 2; of '2', the next one, something may be missing)",
        ),
        (
            600,
            "damaged: unexpected end of data (samples before it: 2; of '2', the next one, something may be missing)",
        ),
    ],
)
def test_of_a_truncated_tar_the_samples_before_are_yielded(tmp_path, extra, message):
    members = {f"{n}.{ending}": data for n in range(4) for ending, data in (("png", PNG[n]), ("txt", b"words"))}
    found = read(webdataset(put(tmp_path, {"x.tar": cut_after(5, members, extra), "y.tar": tar(members)})))
    assert broken(found) == {"x.tar": message}
    assert [key for key in found if key.startswith("x.tar")] == ["x.tar/0", "x.tar/1", "x.tar"]
    assert len([key for key in found if key.startswith("y.tar/")]) == 4


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_truncated_compressed_one_too(tmp_path, mode):
    data = tar({f"{n}.png": picture((60, 60), seed=n) for n in range(20)}, mode)
    found = read(webdataset(put(tmp_path, {"x.tgz": data[: len(data) // 2]})))
    assert list(broken(found)) == ["x.tgz"]
    assert 3 < len(found) < 15


def test_a_damaged_header_ends_a_tar(tmp_path):
    data = bytearray(tar({f"{n}.png": PNG[n] for n in range(4)}))
    second = data.index(b"2.png")
    data[second : second + 300] = b"\x55" * 300
    found = read(webdataset(put(tmp_path, {"x.tar": bytes(data)})))
    reason = "damaged: invalid header (samples before it: 1; of '1', the next one, something may be missing)"
    assert broken(found) == {"x.tar": reason}
    assert list(found) == ["x.tar/0", "x.tar"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged: the file is empty (samples before it: 0)"),
        (b"hello " * 500, "damaged: invalid header (samples before it: 0)"),
        (bytes(10240), "the tar holds no samples"),
        (tar({}), "the tar holds no samples"),
    ],
)
def test_what_is_no_tar(tmp_path, data, message):
    assert broken(read(webdataset(put(tmp_path, {"x.tar": data})))) == {"x.tar": message}


def test_faults_of_single_samples(tmp_path):
    members = [
        ("empty.png", b""),
        ("text.png", b"hello"),
        ("cut.png", PNG[0][:-100]),
        ("caption.png", PNG[0]), ("caption.txt", b"\xff\xfe\xfa"),
        ("json.png", PNG[0]), ("json.json", b"{"),
        ("list.png", PNG[0]), ("list.json", b"[1]"),
        ("half.png", PNG[0]), ("half.json", b'{"label": "\\ud800"}'),
        ("film.mp4", b"x"), ("film.cls", b"3"),
        ("two.left.png", PNG[0]), ("two.right.png", PNG[1]),
        ("noending", b"x"),
        ("good.png", PNG[0]),
    ]  # fmt: skip
    found = of(tmp_path, members)
    reasons = {key.removeprefix("x.tar/"): reason for key, reason in broken(found).items()}
    assert set(found) - {f"x.tar/{key}" for key in reasons} == {"x.tar/good"}
    assert reasons.pop("cut").startswith("damaged")
    assert reasons.pop("json").startswith(".json: Expecting")
    assert reasons == {
        "empty": "the file is empty",
        "text": "not a picture",
        "caption": ".txt: the text is UTF-16; save it as UTF-8",
        "list": ".json: expected an object, found list",
        "half": "its label holds half a character (\\ud800 at 0)",
        "film": "it has no image, but mp4, cls",
        "two": "two files for image: left.png, right.png",
        "noending": "its name has no ending that says what it is",
    }


def test_of_two_samples_of_one_name_the_second_is_broken(tmp_path):
    members = [("a.png", PNG[0]), ("a.png", PNG[1]), ("b.png", PNG[2]), ("a.png", PNG[3]), ("b.txt", b"late")]
    found = of(tmp_path, members)
    assert [key for key, sample in found.items() if isinstance(sample, Sample)] == ["x.tar/a", "x.tar/b"]
    assert found["x.tar/a"].image == PNG[0]
    assert list(broken(found)) == ["x.tar/a#2", "x.tar/a#3", "x.tar/b#2"]
    assert set(broken(found).values()) == {"a second sample of this name; the files of a sample follow each other"}


def test_names_do_not_lead_out_of_the_tar_and_links_lead_nowhere(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("../evil.png", "a/../../evil.png", "/etc/passwd.png", "good.png", ".hidden.png", "a/._x.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG[0])
            file.addfile(info, io.BytesIO(PNG[0]))
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.CHRTYPE, "device.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    found = read(webdataset(put(tmp_path, {"x.tar": buffer.getvalue()})))
    reasons = broken(found)
    assert set(found) - set(reasons) == {"x.tar/good"}
    assert [reasons.pop(f"x.tar/{name}.png") for name in ("link", "hard", "device")] == [
        "a link or device, not a file"
    ] * 3
    assert set(reasons.values()) == {"its name leads out of the tar"} and len(reasons) == 3


def test_a_name_that_is_not_utf8_is_a_key_that_can_be_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", tarfile.GNU_FORMAT)
    (key,) = of(tmp_path, {b"b\xff.png".decode("utf-8", "surrogateescape"): PNG[0]})
    assert key == "x.tar/b\\xff" and key.encode()


def test_the_memory_does_not_grow_with_the_number_of_files(tmp_path):
    import tracemalloc

    put(tmp_path, {"x.tar": tar([(f"{n:06d}.cls", b"x") for n in range(8000)])})
    source = webdataset(tmp_path)
    peaks = []
    for _ in range(3):  # threads that earlier tests have left allocate, too
        tracemalloc.start()
        try:
            assert sum(1 for _ in source.samples()) == 8000
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert min(peaks) < 2_000_000  # the headers of all of them would be more than twice that
