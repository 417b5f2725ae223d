"""The page of a data set: whole in one file, true to the data, and safe with whatever a sample's name or text holds."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from components.data.files import Folder
from components.interfaces import Broken, ImageFormat, Sample
from flows import charts, data_examples
from flows.data_page import page, size
from flows.validation import index_frame, load_suite
from infra.validation import Finding, validate
from tests import _data

CHROMIUM = Path("/usr/bin/chromium")
NASTY = '<script>alert("x")</script> & "quotes"'


class Seen(HTMLParser):
    """Every attribute that refers to something, every tag, and the text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def pictures(count: int = 60, size: tuple[int, int] = (24, 20)) -> list[Sample]:
    return [Sample(f"n/{n}", _data.picture(n, size), label="cat" if n % 3 else "dog") for n in range(count)]


def image_data(folder: Path, samples: list, **options) -> Folder:
    return Folder(_data.write(folder, samples, image=ImageFormat(16, 3), **options))


def bytes_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_the_page_is_one_file_that_needs_nothing_else(tmp_path):
    files = image_data(tmp_path, pictures())
    seen = Seen(page(files, validate(index_frame(files), load_suite("images"))))
    assert seen.links and all(link.startswith(("data:", "#")) for link in seen.links)
    assert not {"script", "link", "iframe", "object"} & set(seen.tags)
    assert b"url(" not in page(files, [])


def test_it_says_what_there_is(tmp_path):
    repeated = [Sample(f"again/{n}", _data.picture(n), label="cat") for n in range(5)]
    broken = [
        Broken("a.png", "the file is empty"),
        Broken("b.png", "the file is empty"),
        Broken("c.txt", "not a picture"),
    ]
    files = image_data(tmp_path, [*pictures(), *repeated, *broken])
    text = Seen(page(files, name="Cats and dogs")).text
    about = json.loads((tmp_path / "dataset.json").read_text())
    assert "Cats and dogs pictures, seen as 16 x 16 in colour 60 samples" in text
    assert "5 duplicates left out 3 could not be read" in text
    for name, split in about["splits"].items():
        assert f"{name.replace('_', ' ')} {split['rows']} {100 * split['rows'] / 60:.1f}%" in text
    assert "the file is empty 2 a.png, b.png not a picture 1 c.txt" in text
    assert "5 of 68 samples have the content of an earlier one" in text
    assert "The same for every sample: width 24 , height 20 , aspect 1.2" in text


@pytest.mark.slow
def test_small_pictures_are_shown_as_they_are_and_large_ones_are_made_small(tmp_path):
    small = Folder(_data.write(tmp_path / "small", pictures(), image=ImageFormat(16, 3)))
    (example, *more) = data_examples.of_split(small, "train", 5, 10_000)
    assert len(more) == 4
    original = Image.open(io.BytesIO(_data.picture(int(example.key.removeprefix("n/")))))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bytes_of(example.uri)))), np.asarray(original))
    assert example.small
    large = image_data(tmp_path / "large", pictures(30, size=(900, 600)))
    example = data_examples.of_split(large, "train", 1, 10_000)[0]
    assert Image.open(io.BytesIO(bytes_of(example.uri))).size == (160, 107)
    assert len(example.uri) < 20_000


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "F", "1"])
def test_pictures_of_every_mode_can_be_shown(mode, tmp_path):
    picture = Image.new(mode, (8, 8))
    format = {"F": "TIFF", "CMYK": "JPEG"}.get(mode, "PNG")
    example = data_examples._example(
        {"key": "a", "label": None, "caption": None, "image": {"bytes": _data.encoded(picture, format)}}
    )
    assert Image.open(io.BytesIO(bytes_of(example.uri))).size == (8, 8)


def test_examples_are_spread_over_the_shards(tmp_path):
    files = image_data(tmp_path, pictures(600))  # a shard a hundred samples and split
    found = data_examples.of_split(files, "train", 12, 600_000)
    assert Counter(int(example.key.removeprefix("n/")) // 100 for example in found) == dict.fromkeys(range(6), 2)


def test_of_large_shards_only_three_a_split_are_opened(tmp_path):
    files = _data.Counting(image_data(tmp_path, pictures(1000)))
    about = json.loads((tmp_path / "dataset.json").read_text())
    for split in about["splits"].values():
        split["bytes"] = 10**10
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    page(files, [])
    assert (files.asked["train"], files.asked["held_out"]) == (3, 3)


def test_samples_that_fail_are_shown(tmp_path):
    samples = [*pictures(), Sample("wide", _data.picture(99, (64, 4)), label="cat")]
    files = image_data(tmp_path, samples)
    suite = [{"type": "expect_column_values_to_be_between", "kwargs": {"column": "aspect", "max_value": 5}}]
    findings = validate(index_frame(files), suite)
    text = page(files, findings).decode()
    card = text[text.index('class="card finding"') : text.index("</details>")]
    assert "at most 5" in card and "1 sample: wide ([16])" in card
    picture = re.search(r'<img src="(data:[^"]+)"', card)
    assert picture and Image.open(io.BytesIO(bytes_of(picture[1]))).size == (64, 4)
    assert '<b class="fail">1/2</b>' in text
    assert "warning" not in Seen(text.encode()).text.split("Expectations")[0].split()


def test_without_findings_those_that_were_written_down_are_shown(tmp_path):
    files = image_data(tmp_path, pictures())
    finding = Finding("no_such_thing", "width", "warning", False, 3, "[1, 2]", ["gone"], "at most 5")
    (tmp_path / "validation.json").write_text(json.dumps([finding.row()]))
    assert "width no such thing at most 5 3 samples: gone ([1, 2])" in Seen(page(files)).text
    assert "Expectations" not in Seen(page(files, [])).words


def test_texts_labels_and_keys_cannot_break_out_of_the_page(tmp_path):
    samples = [Sample(f"{NASTY}{n}", text=f"{NASTY} {n}", label=NASTY, caption=NASTY) for n in range(40)]
    samples += [Broken(NASTY, NASTY)]
    files = Folder(_data.write(tmp_path, samples))
    suite = [{"type": "expect_column_values_to_be_between", "kwargs": {"column": "words", "max_value": 1}}]
    made = page(files, validate(index_frame(files), suite), name=NASTY)
    seen = Seen(made)
    assert seen.tags["script"] == 0
    assert seen.tags["html"] == seen.tags["body"] == 1
    assert seen.text.count(NASTY) > 20


def test_sounds_are_drawn_and_small_ones_can_be_played(tmp_path):
    tone = 0.5 * np.sin(np.arange(4000) / 3)
    samples = [Sample(f"{n}.wav", audio=_data.sound(tone + n / 1e4), caption=f"tone {n}") for n in range(20)]
    samples += [Sample("long.wav", audio=_data.sound(np.tile(tone, 50)))]
    files = Folder(_data.write(tmp_path, samples))
    found = data_examples.of_keys(files, ["3.wav", "long.wav", "missing.wav"])
    assert set(found) == {"3.wav", "long.wav"}
    assert bytes_of(found["3.wav"].uri) == samples[3].audio
    assert found["long.wav"].uri == ""
    assert all("<rect" in example.svg for example in found.values())
    seen = Seen(page(files, []))
    assert seen.tags["audio"] >= 8
    assert "tone" in seen.text


def test_arrays_are_drawn_with_their_shape(tmp_path):
    samples = [Sample(f"{n}", array=_data.array(np.random.default_rng(n).normal(size=(50, 3)))) for n in range(20)]
    seen = Seen(page(Folder(_data.write(tmp_path, samples)), []))
    assert "50 x 3" in seen.text


def test_every_drawing_is_well_formed(tmp_path):
    samples = [Sample(f"{n}", text=f"text {n} " * n, label=f'<{n % 30}> & "') for n in range(1, 90)]
    made = page(Folder(_data.write(tmp_path, samples)), []).decode()
    drawings = re.findall(r"<svg.*?</svg>", made, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)


# ----------------------------------------------------------------------------------------------------------- charts


def test_a_histogram_has_the_shares_of_each_group():
    rng = np.random.default_rng(0)
    groups = {"train": rng.normal(0, 1, 1000), "held_out": rng.normal(0, 1, 10)}
    bins = charts.histogram(groups)
    assert bins is not None
    assert {name: sum(shares) for name, shares in bins.shares.items()} == pytest.approx({"train": 1, "held_out": 1})
    assert len(bins.names) == len(bins.shares["train"])
    assert float(bins.low) == pytest.approx(min(g.min() for g in groups.values()), rel=1e-3)


def test_an_outlier_does_not_squeeze_the_others():
    bins = charts.histogram({"train": np.append(np.arange(1000.0), 1e9)})
    assert bins is not None
    assert max(bins.shares["train"]) < 0.1
    assert bins.high == "1,000,000,000"


def test_few_values_have_a_bar_each_and_no_number_none():
    bins = charts.histogram({"train": np.array([1.0, 2, 2, np.nan]), "target": np.array([5.0])})
    assert bins is not None
    assert (bins.names, bins.shares) == (["1", "2", "5"], {"train": [1 / 3, 2 / 3, 0], "target": [0, 0, 1]})
    assert charts.histogram({"train": np.array([np.nan])}) is None


def test_bars_are_as_long_as_their_numbers():
    drawing = ElementTree.fromstring(
        charts.bars_svg([("a", {"train": 30, "target": 10}), ("b", {"train": 10, "target": 0})])
    )
    widths = [float(bar.attrib["width"]) for bar in drawing.iter("rect")]
    assert len(widths) == 3
    assert np.array(widths) / widths[0] == pytest.approx([1, 1 / 3, 1 / 3], rel=0.01)


def test_a_wave_is_the_envelope():
    sound = np.concatenate([np.tile([0.5, -0.25], 100), np.zeros(200)])[None]
    drawing = ElementTree.fromstring(charts.wave_svg(sound, height=102, points=4))
    bars = [(float(bar.attrib["y"]), float(bar.attrib["height"])) for bar in drawing.iter("rect")]
    assert bars == [(26.0, 37.5), (26.0, 37.5), (51.0, 0.6), (51.0, 0.6)]


def test_what_is_not_a_number_breaks_a_curve():
    drawing = ElementTree.fromstring(charts.curves_svg(np.array([[0.0], [1.0], [np.nan], [1.0], [0.0]])))
    (path,) = drawing.iter("path")
    assert re.findall("[ML]", path.attrib["d"]) == ["M", "L", "M", "L"]


def test_sizes_are_for_people():
    assert [size(n) for n in (7, 1500, 2_400_000, 3e9, 5e12)] == ["7 B", "1.5 kB", "2.4 MB", "3 GB", "5 TB"]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_a_browser_shows_it_without_asking_anybody(tmp_path):
    from playwright.sync_api import sync_playwright

    files = image_data(
        tmp_path / "data", [*pictures(200), Sample("a very long key " * 20, _data.picture(999), label="x" * 80)]
    )
    path = tmp_path / "page.html"
    path.write_bytes(page(files, validate(index_frame(files), load_suite("images"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 400, "height": 800})
        asked: list[str] = []
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("console", lambda message: asked.append(message.text))
        shown.goto(path.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
        assert shown.evaluate("document.documentElement.scrollWidth") == 400
        assert shown.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        browser.close()
