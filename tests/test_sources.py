"""What every source keeps, and everything that a folder of a person's pictures may hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components import registry
from components.data.images import check, decode
from components.data.locations import SourceError
from components.data.sources import _parts
from components.data.sources._checked import why_broken
from components.data.sources.image_folder import ImageFolder
from components.interfaces import MODALITIES, Broken, ImageFormat, Sample, Source
from tests._sources import broken, picture, put, read, small


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    (place / "a.png").write_bytes(picture(seed=1))
    (place / "b.jpg").write_bytes(picture(kind="JPEG", seed=2))
    return place


def of(place: Path) -> dict[str, Sample | Broken]:
    return read(ImageFolder(path=str(place)))


EVERY = pytest.mark.parametrize("name", registry.names(Source))


@EVERY
def test_every_source_yields_readable_samples_in_a_fixed_order(name, tmp_path):
    spec = small(name, tmp_path / "data")
    source, again = registry.build(Source, spec), registry.build(Source, spec)
    first, second = list(source.samples()), list(again.samples())
    assert first
    assert first == second
    assert len({sample.key for sample in first}) == len(first)
    assert set(source.modalities) <= set(MODALITIES)
    for sample in first:
        assert isinstance(sample, Sample), sample
        has = {modality for modality in MODALITIES if getattr(sample, modality) is not None}
        assert has and has <= set(source.modalities)
        for modality in has:
            assert why_broken(modality, getattr(sample, modality)) is None
        for said in (sample.key, sample.label, sample.caption, sample.text):
            assert said is None or (isinstance(said, str) and said.encode())
        assert not Path(sample.key).is_absolute()


@EVERY
def test_parts_read_apart_and_in_any_order_are_the_samples(name, tmp_path, monkeypatch):
    monkeypatch.setattr(_parts, "FILES", 2)
    monkeypatch.setattr(_parts, "BYTES", 200)  # even these small files are torn into pieces
    spec = small(name, tmp_path / "data")
    parts = list(registry.build(Source, spec).parts())
    assert len(set(parts)) == len(parts)
    assert len(parts) > 1 or not any(part.files for part in parts)
    apart = {part: list(registry.build(Source, spec).read(part)) for part in reversed(parts)}
    together = list(registry.build(Source, spec).samples())
    assert [sample for part in parts for sample in apart[part]] == together
    monkeypatch.undo()  # nor does it matter how large the pieces are
    assert list(registry.build(Source, spec).samples()) == together


@EVERY
def test_no_source_unpickles(name, tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("unpickled")

    spec = small(name, tmp_path / "data")
    for attribute in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, attribute, refuse)
    assert list(registry.build(Source, spec).samples())


@pytest.mark.slow
def test_parts_depend_on_nothing_but_the_data(tmp_path):
    specs = [small(name, tmp_path / name) for name in registry.names(Source)]
    code = (
        "import json, os, sys; os.cpu_count = lambda: 97\n"
        "from components import registry; from components.data.sources import _parts; from components.interfaces import Source\n"
        "_parts.BYTES = 3000\n"
        "print(json.dumps([repr(list(registry.build(Source, spec).parts())) for spec in json.loads(sys.argv[1])]))"
    )
    found = []
    for seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "OMP_NUM_THREADS": seed,
            "LC_ALL": "C" if seed == "1" else "C.UTF-8",
        }
        command = [sys.executable, "-c", code, json.dumps(specs)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert sum(parts.count("Part(") for parts in found[0]) > 2 * len(specs)


def test_digits_are_the_digits():
    samples = list(registry.build(Source, {"type": "digits"}).samples())
    assert len(samples) == 1797
    assert {s.label for s in samples} == set("0123456789")


def test_glyphs_cover_each_character_in_each_hand():
    samples = list(registry.build(Source, {"type": "glyphs", "characters": "Ag3", "variants": 2, "size": 12}).samples())
    assert {s.label for s in samples} == set("Ag3")
    assert all(Image.open(io.BytesIO(s.image)).size == (12, 12) for s in samples)
    per_font = {s.key.split("/")[1] for s in samples}
    assert len(samples) == len(per_font) * 3 * 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I", "F"])
def test_every_format_and_mode_can_be_decoded(kind, mode):
    try:
        data = picture(kind=kind, mode=mode)
    except (OSError, ValueError):
        pytest.skip(f"{kind} has no mode {mode}")
    assert check(data) is None
    for image in (ImageFormat(8, 1), ImageFormat(32, 3)):
        pixels = decode(data, image)
        assert pixels.shape == (image.channels, image.size, image.size)
        assert pixels.dtype == np.uint8
        assert pixels.max() > 0


def test_sixteen_bits_keep_their_range():
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)).save(buffer, "PNG")
    pixels = decode(buffer.getvalue(), ImageFormat(8, 1))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_orientation_is_applied_and_transparency_is_black():
    image = Image.new("RGB", (8, 16), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 8, 8))  # black on top
    exif = Image.Exif()
    exif[0x0112] = 3  # shown upside down
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    pixels = decode(buffer.getvalue(), ImageFormat(8, 1))[0]
    assert pixels[0].mean() > 200 > 50 > pixels[-1].mean()
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(clear, "PNG")
    assert decode(clear.getvalue(), ImageFormat(8, 3)).max() == 0


def test_the_centre_is_what_remains_even_of_a_strip():
    strip = np.zeros((4, 30_000), np.uint8)
    strip[:, 15_000 - 2 : 15_000 + 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "PNG")
    assert decode(buffer.getvalue(), ImageFormat(512, 1))[:, :, 100:-100].min() > 250


def test_a_folder_with_everything_broken_in_it(folder):
    good = picture(kind="JPEG", size=(200, 150), seed=3)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "cut.png").write_bytes(picture(size=(90, 90))[:-500])
    (folder / "header.png").write_bytes(picture()[:20])
    damaged = bytearray(picture(size=(90, 90)))
    damaged[200:400] = bytes(200)
    (folder / "damaged.png").write_bytes(bytes(damaged))
    (folder / "notes.txt").write_text("not a picture")
    (folder / "zero.gif").write_bytes(b"GIF89a" + bytes(30))
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").write_bytes(picture())
    (folder / "ünïcode näme.PNG").write_bytes(picture(seed=4))
    found = of(folder)
    broken = {key: sample.reason for key, sample in found.items() if isinstance(sample, Broken)}
    assert set(found) - set(broken) == {"a.png", "b.jpg", "ünïcode näme.PNG"}
    assert set(broken) == {
        *("empty.png", "text.jpg", "cut.jpg", "cut.png", "header.png", "damaged.png", "notes.txt", "zero.gif")
    }
    assert broken["empty.png"] == "the file is empty"
    assert broken["text.jpg"] == "not a picture"
    assert all(broken.values())


def test_a_decompression_bomb_is_broken(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "damaged" in check(picture())


def test_subfolders_are_labels(folder):
    (folder / "cat" / "deep").mkdir(parents=True)
    (folder / "cat" / "deep" / "x.png").write_bytes(picture(seed=5))
    found = of(folder)
    assert found["cat/deep/x.png"].label == "cat"
    assert found["a.png"].label is None


def test_a_table_in_csv(folder):
    (folder / "metadata.csv").write_text("\ufefffile_name,label,text\na.png,7,\nb.jpg,,two words\ngone.png,1,\n")
    found = of(folder)
    assert (found["a.png"].label, found["a.png"].caption) == ("7", None)
    assert (found["b.jpg"].label, found["b.jpg"].caption) == (None, "two words")
    assert isinstance(found["gone.png"], Broken)


def test_a_table_in_json_lines(folder):
    rows = [{"file_name": "a.png", "label": 7, "caption": "seven"}, {"file_name": "./b.jpg"}]
    (folder / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    found = of(folder)
    assert (found["a.png"].label, found["a.png"].caption) == ("7", "seven")
    assert (found["b.jpg"].label, found["b.jpg"].caption) == (None, None)
    assert "metadata.jsonl" not in found


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/passwd"])
@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_a_table_does_not_lead_out_of_the_folder(folder, name, table):
    text = f"file_name\n{name}\n" if table.endswith("csv") else json.dumps({"file_name": name})
    (folder / table).write_text(text)
    with pytest.raises(SourceError, match="outside the folder"):
        of(folder)


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("metadata.csv", "name,label\na.png,1\n", "expected a 'file_name', found name, label"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"label": 3}\n', "row 2: expected a 'file_name'"),
        ("metadata.jsonl", '{"file_name": "a.png"\n', "metadata.jsonl"),
        ("metadata.jsonl", "[1]\n", "row 1"),
        ("metadata.csv", b"file_name\n\xff\xfe\xfa\n", "metadata.csv"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(folder, table, text, message):
    (folder / table).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SourceError, match=message):
        of(folder)


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(SourceError, match="there is no folder or file"):
        of(tmp_path / "nothing")
    with pytest.raises(SourceError, match="holds no files"):
        of(tmp_path)


def test_a_text_beside_a_picture_is_its_caption(folder):
    put(folder, {"a.txt": " ein Bild \n", "cat/x.webp": picture(kind="WEBP"), "cat/x.png": picture(seed=3)})
    put(folder, {"cat/x.TXT": "two of them", "b.txt": "", "cat/notes.txt": "nothing of this name"})
    put(folder, {"archive.v2.png": picture(seed=4), "archive.v2.txt": "dots"})
    found = of(folder)
    assert found["a.png"].caption == "ein Bild"
    assert found["b.jpg"].caption is None, "an empty text says nothing"
    assert found["cat/x.webp"].caption == found["cat/x.png"].caption == "two of them"
    assert found["archive.v2.png"].caption == "dots"
    assert broken(found) == {"cat/notes.txt": "not a picture"}


def test_a_caption_that_is_no_text(folder):
    put(folder, {"a.txt": b"caf\xe9"})
    assert broken(of(folder)) == {"a.png": "its caption: not UTF-8: byte 3 is 0xe9"}


def test_where_a_table_is_texts_beside_pictures_are_not_captions(folder):
    put(folder, {"a.txt": "beside", "metadata.csv": "file_name,text\na.png,from the table\n"})
    found = of(folder)
    assert found["a.png"].caption == "from the table"
    assert found["b.jpg"].caption is None


def test_a_file_that_a_table_names_twice_counts_once(folder):
    put(folder, {"metadata.csv": "file_name,label\na.png,first\na.png,second\n./a.png,third\n"})
    found = of(folder)
    assert found["a.png"].label == "first"
    assert list(broken(found)) == ["a.png#2", "a.png#3"]


def test_content_decides_and_not_the_name(folder):
    put(
        folder,
        {"png.jpg": picture(seed=7), "webp": picture(kind="WEBP", seed=8), "jpeg.txt": picture(kind="JPEG", seed=9)},
    )
    assert {"png.jpg", "webp", "jpeg.txt"} <= set(of(folder)) and not broken(of(folder))


def test_a_table_in_each_subfolder(folder):
    put(folder, {"train/metadata.csv": "file_name,label\nx/1.png,cat\n", "train/x/1.png": picture(), "train/x/2.png": picture(),
                 "test/metadata.jsonl": json.dumps({"file_name": "1.png", "label": "dog"}), "test/1.png": picture()})  # fmt: skip
    found = of(folder)
    labels = {key: sample.label for key, sample in found.items()}
    assert labels == {"a.png": None, "b.jpg": None, "train/x/1.png": "cat", "train/x/2.png": None, "test/1.png": "dog"}


def test_parts_carry_their_tables_and_captions(folder, monkeypatch):
    monkeypatch.setattr(_parts, "FILES", 2)
    put(
        folder,
        {
            "a.txt": "caption",
            "sub/c.png": picture(),
            "sub/d.png": picture(),
            "sub/metadata.csv": "file_name\nc.png\nd.png\n",
        },
    )
    files = [part.files for part in ImageFolder(path=str(folder)).parts()]
    assert files == [("a.png", "a.txt"), ("sub/metadata.csv", "b.jpg", "sub/c.png"), ("sub/metadata.csv", "sub/d.png")]


def test_a_table_that_has_changed_is_read_again(folder):
    (folder / "metadata.csv").write_text("file_name,label\na.png,before\n")
    assert of(folder)["a.png"].label == "before"
    (folder / "metadata.csv").write_text("file_name,label\na.png,after it\n")
    assert of(folder)["a.png"].label == "after it"


def test_files_that_cannot_be_read_are_broken(folder):
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    found = broken(of(folder))
    assert found["gone.png"] == "cannot be read: No such file or directory"
    assert found["self.png"] == "cannot be read: Too many levels of symbolic links"


def test_files_and_folders_without_permission_are_broken():
    """In a process of its own, for root may read everything."""
    code = (
        "import os, sys; from components.data.locations import listing, fingerprint;"
        "from components.data.sources.image_folder import ImageFolder; from PIL import Image; Image.init()\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "for sample in ImageFolder(path=sys.argv[1]).samples(): print(sample.key, getattr(sample, 'reason', ''))\n"
        "fingerprint(sys.argv[1])\n"
        "try: listing(sys.argv[1] + '/closed')\n"
        "except ValueError as error: print(str(error).rpartition('/')[2])"
    )
    with tempfile.TemporaryDirectory() as name:
        place = put(Path(name), {"closed/x.png": picture(), "open.png": picture(), "secret.png": picture()})
        place.chmod(0o755)
        (place / "secret.png").chmod(0)
        (place / "closed").chmod(0)
        try:
            done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
        finally:
            (place / "closed").chmod(0o700)
    assert done.stdout.splitlines() == [
        "closed cannot be read: Permission denied",
        "open.png ",
        "secret.png cannot be read: Permission denied",
        "closed' cannot be listed: Permission denied",
    ]


def test_a_picture_in_place_of_a_folder(folder):
    with pytest.raises(SourceError, match="a.png' is a file; give the folder that it is in"):
        of(folder / "a.png")


def test_a_name_that_is_not_utf8_is_a_key_that_can_be_stored(folder):
    Path(folder, b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(picture())
    assert "\\xff.png" in of(folder)
