"""What every source keeps, and everything that a folder of a person's pictures may hold."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components import registry
from components.data.images import check, decode
from components.data.sources.image_folder import FolderError, ImageFolder
from components.interfaces import Broken, ImageFormat, Sample, Source

SMALL = {"glyphs": {"characters": "Ag3", "variants": 2, "size": 12}}


def encoded(size: tuple[int, int] = (20, 14), kind: str = "PNG", mode: str = "RGB", seed: int = 0, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    (place / "a.png").write_bytes(encoded(seed=1))
    (place / "b.jpg").write_bytes(encoded(kind="JPEG", seed=2))
    return place


def read(place: Path) -> dict[str, Sample | Broken]:
    found = list(ImageFolder(path=str(place)).samples())
    assert len({s.key for s in found}) == len(found)
    return {s.key: s for s in found}


@pytest.mark.parametrize("name", registry.names(Source))
def test_every_source_yields_readable_samples_in_a_fixed_order(name, folder):
    config = {"path": str(folder)} if name == "image_folder" else SMALL.get(name, {})
    source = registry.build(Source, {"type": name, **config})
    first, second = list(source.samples()), list(source.samples())
    assert first
    assert first == second
    assert len({sample.key for sample in first}) == len(first)
    for sample in first:
        assert isinstance(sample, Sample)
        assert check(sample.image) is None
        assert sample.label is None or isinstance(sample.label, str)
        assert not Path(sample.key).is_absolute()


def test_digits_are_the_digits():
    samples = list(registry.build(Source, {"type": "digits"}).samples())
    assert len(samples) == 1797
    assert {s.label for s in samples} == set("0123456789")


def test_glyphs_cover_each_character_in_each_hand():
    samples = list(registry.build(Source, {"type": "glyphs", **SMALL["glyphs"]}).samples())
    assert {s.label for s in samples} == set("Ag3")
    assert all(Image.open(io.BytesIO(s.image)).size == (12, 12) for s in samples)
    per_font = {s.key.split("/")[1] for s in samples}
    assert len(samples) == len(per_font) * 3 * 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I", "F"])
def test_every_format_and_mode_can_be_decoded(kind, mode):
    try:
        data = encoded(kind=kind, mode=mode)
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
    picture = Image.new("RGB", (8, 16), (255, 255, 255))
    picture.paste((0, 0, 0), (0, 0, 8, 8))  # black on top
    exif = Image.Exif()
    exif[0x0112] = 3  # shown upside down
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
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
    good = encoded(kind="JPEG", size=(200, 150), seed=3)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "cut.png").write_bytes(encoded(size=(90, 90))[:-500])
    (folder / "header.png").write_bytes(encoded()[:20])
    damaged = bytearray(encoded(size=(90, 90)))
    damaged[200:400] = bytes(200)
    (folder / "damaged.png").write_bytes(bytes(damaged))
    (folder / "notes.txt").write_text("not a picture")
    (folder / "zero.gif").write_bytes(b"GIF89a" + bytes(30))
    (folder / ".hidden.png").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.png").write_bytes(encoded())
    (folder / "ünïcode näme.PNG").write_bytes(encoded(seed=4))
    found = read(folder)
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
    assert "damaged" in check(encoded())


def test_subfolders_are_labels(folder):
    (folder / "cat" / "deep").mkdir(parents=True)
    (folder / "cat" / "deep" / "x.png").write_bytes(encoded(seed=5))
    found = read(folder)
    assert found["cat/deep/x.png"].label == "cat"
    assert found["a.png"].label is None


def test_a_table_in_csv(folder):
    (folder / "metadata.csv").write_text("\ufefffile_name,label,text\na.png,7,\nb.jpg,,two words\ngone.png,1,\n")
    found = read(folder)
    assert (found["a.png"].label, found["a.png"].caption) == ("7", None)
    assert (found["b.jpg"].label, found["b.jpg"].caption) == (None, "two words")
    assert isinstance(found["gone.png"], Broken)


def test_a_table_in_json_lines(folder):
    rows = [{"file_name": "a.png", "label": 7, "caption": "seven"}, {"file_name": "./b.jpg"}]
    (folder / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    found = read(folder)
    assert (found["a.png"].label, found["a.png"].caption) == ("7", "seven")
    assert (found["b.jpg"].label, found["b.jpg"].caption) == (None, None)
    assert "metadata.jsonl" not in found


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/passwd"])
@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_a_table_does_not_lead_out_of_the_folder(folder, name, table):
    text = f"file_name\n{name}\n" if table.endswith("csv") else json.dumps({"file_name": name})
    (folder / table).write_text(text)
    with pytest.raises(FolderError, match="outside the folder"):
        read(folder)


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
    with pytest.raises(FolderError, match=message):
        read(folder)


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FolderError, match="is not a folder"):
        read(tmp_path / "nothing")
    with pytest.raises(FolderError, match="holds no files"):
        read(tmp_path)
