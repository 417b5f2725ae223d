"""What is measured of one sample: exact values where they are known, nothing where there is nothing to measure."""

from __future__ import annotations

# ruff: noqa: RUF001 - letters of other scripts
import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from components.data.facts import FACTS, measure
from components.data.language import detect
from components.interfaces import MODALITIES, Sample


def image(picture: Image.Image, format: str = "PNG", **options) -> Sample:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return Sample("a", image=buffer.getvalue())


def sound(samples: np.ndarray, rate: int = 8000, **options) -> Sample:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **{"format": "WAV", "subtype": "FLOAT", **options})
    return Sample("a", audio=buffer.getvalue())


def array(values: np.ndarray) -> Sample:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return Sample("a", array=buffer.getvalue())


def tone(seconds: float = 1.0, amplitude: float = 0.5, rate: int = 8000) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * 100 * np.arange(int(seconds * rate)) / rate)


READABLE = {
    "image": image(Image.new("RGB", (8, 4))),
    "text": Sample("a", text="Some words."),
    "audio": sound(tone()),
    "array": array(np.ones((2, 3))),
}
UNREADABLE = {
    "image": Sample("a", image=b"no picture"),
    "audio": Sample("a", audio=b"no sound"),
    "array": Sample("a", array=b"no array"),
}


def test_every_modality_has_facts_and_no_two_share_a_name():
    names = [name for facts in FACTS.values() for name in facts]
    assert set(FACTS) == set(MODALITIES)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_sample_has_the_facts_of_its_modality_in_their_types(modality):
    found = measure(READABLE[modality])
    assert list(found) == list(FACTS[modality])
    assert {name: type(value) for name, value in found.items()} == {
        name: {"float64": float, "string": str}[kind] for name, kind in FACTS[modality].items()
    }


@pytest.mark.parametrize("modality", UNREADABLE)
def test_what_cannot_be_read_has_no_facts(modality):
    assert measure(UNREADABLE[modality]) == dict.fromkeys(FACTS[modality])


def test_a_sample_of_two_modalities_has_the_facts_of_both():
    both = Sample("a", image=READABLE["image"].image, audio=READABLE["audio"].audio)
    assert measure(both) == measure(READABLE["image"]) | measure(READABLE["audio"])
    assert measure(Sample("a")) == {}


# ----------------------------------------------------------------------------------------------------------- images


def test_a_picture_of_two_halves():
    picture = Image.new("L", (128, 64))
    picture.paste(255, (64, 0, 128, 64))
    found = measure(image(picture))
    assert (found["width"], found["height"], found["aspect"], found["mode"]) == (128, 64, 2.0, "L")
    assert found["contrast"] == 127.5


def test_a_picture_of_nothing_has_no_contrast():
    assert measure(image(Image.new("RGB", (300, 200), (200, 10, 10))))["contrast"] == 0


def test_a_large_jpeg_is_measured_like_a_small_copy_of_it():
    noise = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BILINEAR)
    small, large = measure(image(picture.resize((400, 300)), "JPEG")), measure(image(picture, "JPEG"))
    assert (large["width"], large["height"]) == (4000, 3000)
    assert large["contrast"] == pytest.approx(small["contrast"], rel=0.05)


def test_a_cut_off_picture_has_no_facts():
    whole = image(Image.effect_noise((64, 64), 50)).image or b""
    assert measure(Sample("a", image=whole[: len(whole) // 2])) == dict.fromkeys(FACTS["image"])


# ------------------------------------------------------------------------------------------------------------ texts


def test_a_text_is_counted():
    found = measure(Sample("a", text="Grüße, Welt!\nzwei Zeilen\n"))
    assert (found["characters"], found["words"], found["lines"]) == (25, 4, 2)
    assert found["ascii"] == pytest.approx(23 / 25)
    assert found["printable"] == 1


def test_what_is_not_printable():
    assert measure(Sample("a", text="ab\x00\x01"))["printable"] == 0.5
    assert measure(Sample("a", text="a\ufffd \n"))["printable"] == 0.75  # the mark of a wrong encoding


def test_repeated_lines_and_repeated_words():
    assert measure(Sample("a", text="one\ntwo\none\n  one  \n\n\n"))["repetition"] == 6 / 22
    assert measure(Sample("a", text="one\ntwo\nthree"))["repetition"] == 0
    prose = "The quick brown fox jumps over the lazy dog, and nobody in the village had ever seen it before."
    again, once = measure(Sample("a", text=prose * 50)), measure(Sample("a", text=prose))
    assert again["compression"] < 0.05 < 0.5 < once["compression"]


def test_an_empty_text_has_no_shares():
    found = measure(Sample("a", text=""))
    assert (found["characters"], found["words"], found["lines"], found["language"]) == (0, 0, 0, "und")
    assert found["printable"] is found["ascii"] is found["repetition"] is found["compression"] is None


def test_half_a_character_is_measured_as_well():
    assert measure(Sample("a", text="a\ud800b"))["printable"] == pytest.approx(2 / 3)


# The first article of the Universal Declaration of Human Rights, from the United Nations' translations.
DECLARATION = {
    "cs": "Všichni lidé se rodí svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni rozumem a svědomím a mají "
    "spolu jednat v duchu bratrství.",
    "da": "Alle mennesker er født frie og lige i værdighed og rettigheder. De er udstyret med fornuft og samvittighed, "
    "og de bør handle mod hverandre i en broderskabets ånd.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
    "and should act towards one another in a spirit of brotherhood.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on annettu järki ja "
    "omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden hengessä.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hu": "Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Az emberek, ésszel és lelkiismerettel "
    "bírván, egymással szemben testvéri szellemben kell hogy viseltessenek.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di "
    "coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en "
    "geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i "
    "sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, "
    "devem agir uns para com os outros em espírito de fraternidade.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
    "должны поступать в отношении друг друга в духе братства.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De har utrustats med förnuft och samvete och "
    "bör handla gentemot varandra i en anda av gemenskap.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve birbirlerine "
    "karşı kardeşlik zihniyeti ile hareket etmelidirler.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені розумом і совістю і "
    "повинні діяти у відношенні один до одного в дусі братерства.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
}  # fmt: skip


@pytest.mark.parametrize("language", DECLARATION)
def test_the_first_article_of_human_rights_is_in_its_language(language):
    assert detect(DECLARATION[language]) == language


@pytest.mark.parametrize("text", ["", "12 3.5 7", "Xylophon", "Berlin Paris Wien", "qwrt zxcv mnbv lkjh"])
def test_no_language_is_better_than_a_wrong_one(text):
    assert detect(text) == "und"


@pytest.mark.parametrize(
    "text",
    [
        "import os\n\n\ndef size(path):\n    return os.stat(path).st_size\n",
        "#include <stdio.h>\n\nint main(void) {\n    puts(\"hello\");\n    return 0;\n}\n",
        "const sum = (a, b) => {\n  return a + b;\n};\nexport default sum;\n",
        "x = 3\nfor i in range(x):\n    print(i)\n",
    ],
)  # fmt: skip
def test_program_text_is_code(text):
    assert detect(text) == "code"


def test_prose_is_no_code():
    text = (
        "If you see this: stay calm.\nFor a while, nothing happens.\nReturn to the house when the rain has stopped.\n"
    )
    assert detect(text) == "en"


def test_the_standard_library_is_code_and_its_manual_is_english():
    import statistics
    import textwrap
    from pydoc_data.topics import topics

    folder = Path(textwrap.__file__).parent
    modules = [path for path in sorted(folder.glob("*.py")) if path.stat().st_size > 1000]
    assert statistics.mean(detect(path.read_text()) == "code" for path in modules) > 0.85  # others open with prose
    assert statistics.mean(detect(text) == "en" for text in topics.values()) > 0.95


# ----------------------------------------------------------------------------------------------------------- sounds


def test_a_tone():
    found = measure(sound(tone(seconds=1.5)))
    assert (found["seconds"], found["rate"], found["channels"]) == (1.5, 8000, 1)
    assert found["peak"] == pytest.approx(20 * np.log10(0.5), abs=1e-3)
    assert found["rms"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=1e-3)
    assert (found["silence"], found["clipping"]) == (0, 0)


def test_digital_silence():
    found = measure(sound(np.zeros(8000)))
    assert (found["peak"], found["rms"], found["silence"]) == (-120, -120, 1)


def test_half_of_it_silent():
    found = measure(sound(np.concatenate([tone(1.0), tone(1.0, amplitude=0.0005)])))
    assert found["silence"] == 0.5


def test_silence_is_silence_in_all_channels():
    assert measure(sound(np.stack([tone(), np.zeros(8000)], axis=1)))["silence"] == 0


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_clipped_samples_are_counted_in_every_format(subtype):
    samples = tone()
    samples[:800] = 1.0
    assert measure(sound(samples, subtype=subtype))["clipping"] == 0.1


def test_a_long_sound_measures_the_same_in_blocks():
    samples = np.random.default_rng(0).normal(0, 0.1, 8000 * 45)
    found = measure(sound(samples))
    assert found["seconds"] == 45
    assert found["rms"] == pytest.approx(20 * np.log10(np.sqrt(np.mean(samples**2))), abs=1e-4)
    assert found["peak"] == pytest.approx(20 * np.log10(np.abs(samples).max()), abs=1e-4)


def test_a_compressed_sound():
    found = measure(sound(tone(), format="FLAC", subtype="PCM_16"))
    assert (found["seconds"], found["peak"]) == (1.0, pytest.approx(20 * np.log10(0.5), abs=1e-3))


# ----------------------------------------------------------------------------------------------------------- arrays


def test_an_array_with_holes():
    found = measure(array(np.array([[1.0, np.nan, 3.0], [-2.0, np.inf, 0.0]])))
    assert found == {"rows": 2, "columns": 3, "finite": pytest.approx(4 / 6), "minimum": -2, "maximum": 3}


@pytest.mark.parametrize(
    ("values", "rows", "columns"),
    [(np.arange(5), 5, 1), (np.zeros((4, 2, 3), np.float16), 4, 6), (np.array(7), 1, 1)],
)
def test_rows_are_the_first_axis(values, rows, columns):
    found = measure(array(values))
    assert (found["rows"], found["columns"]) == (rows, columns)


@pytest.mark.parametrize("values", [np.array(["a"]), np.zeros((0, 3)), np.array([1j])])
def test_what_is_no_array_of_numbers_has_no_facts(values):
    assert measure(array(values)) == dict.fromkeys(FACTS["array"])


class Armed:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.folder,)


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Armed(tmp_path / "made")], dtype=object), allow_pickle=True)
    assert measure(Sample("a", array=buffer.getvalue())) == dict.fromkeys(FACTS["array"])
    assert not (tmp_path / "made").exists()


def test_nothing_but_nan_has_no_range():
    found = measure(array(np.full(3, np.nan)))
    assert (found["finite"], found["minimum"], found["maximum"]) == (0, None, None)
