"""Sounds: what counts as one, decoding to a rate without aliasing, and folders of them."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from components import registry
from components.data.audio import check, decode, resample
from components.interfaces import Sample, Source
from tests._sources import broken, put, read, sound


def tone(frequency: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate).astype(np.float32)[None]


def encoded(samples: np.ndarray, rate: int = 8000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """[channels, samples] -> bytes"""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.T, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def decibels(value: float) -> float:
    return 20 * np.log10(value + 1e-30)


# -------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("kind", "subtype", "within"),
    [
        ("WAV", "FLOAT", 0),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("FLAC", "PCM_24", 2**-23),
        ("FLAC", "PCM_16", 2**-15),
    ],
)
def test_lossless_formats_give_back_the_numbers(kind, subtype, within):
    samples = 0.5 * np.random.default_rng(0).standard_normal((2, 999)).clip(-1.9, 1.9).astype(np.float32)
    found = decode(encoded(samples, 8000, kind, subtype), rate=8000, channels=2)
    assert found.dtype == np.float32 and found.shape == (2, 999)
    assert np.abs(found - samples).max() <= within


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_lossy_formats_are_near(kind):
    samples = 0.5 * tone(440, 16000)
    found = decode(encoded(samples, 16000, kind), rate=16000)
    middle = slice(4000, 12000)
    assert np.abs(np.fft.rfft(found[0, middle])).argmax() == np.abs(np.fft.rfft(samples[0, middle])).argmax()


def test_channels_are_the_mean_or_the_same_in_each():
    left, right = tone(100, 8000), np.zeros((1, 8000), np.float32)
    stereo = encoded(np.concatenate([left, right]), subtype="FLOAT")
    np.testing.assert_allclose(decode(stereo, 8000), left / 2, atol=1e-7)
    np.testing.assert_array_equal(decode(stereo, 8000, channels=2), np.concatenate([left, right]))
    np.testing.assert_array_equal(
        decode(encoded(left, subtype="FLOAT"), 8000, channels=2), np.concatenate([left, left])
    )
    five = encoded(np.repeat(left, 5, axis=0), subtype="FLOAT")
    np.testing.assert_allclose(decode(five, 8000, channels=2), np.concatenate([left, left]), atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "new"), [(48000, 16000), (44100, 16000), (16000, 24000), (22050, 44100), (8000, 8000), (44100, 48000)]
)
def test_tones_below_the_lower_limit_keep_level_and_phase(rate, new):
    limit = min(rate, new) / 2
    for frequency in (0.01 * limit, 0.3 * limit, 0.85 * limit):
        found, expected = resample(tone(frequency, rate), rate, new), tone(frequency, new)
        assert found.shape == expected.shape
        middle = slice(new // 4, -new // 4)
        assert decibels(float(np.abs(found - expected)[0, middle].max())) < -55


@pytest.mark.parametrize(("rate", "new"), [(48000, 16000), (44100, 16000), (44100, 8000), (48000, 44100)])
def test_nothing_folds_back(rate, new):
    """A tone that the new rate cannot hold is gone; with a bad filter it would come back as another tone."""
    for frequency in np.linspace(new / 2 * 1.001, rate / 2 * 0.99, 7):
        found = resample(tone(frequency, rate), rate, new)
        assert decibels(float(np.abs(found[0, new // 4 : -new // 4]).max())) < -70, frequency


def test_nothing_is_mirrored_when_the_rate_goes_up():
    found = resample(tone(3000, 8000), 8000, 48000)[0, 12000:36000]
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found)))) / (len(found) / 4)
    assert decibels(float(spectrum[2500:].max())) < -70  # bins of 2 Hz: all above 5,000 Hz


def test_the_length_is_rounded_up():
    assert resample(np.zeros((1, 441), np.float32), 44100, 16000).shape == (1, 160)
    assert resample(np.zeros((2, 442), np.float32), 44100, 16000).shape == (2, 161)


def test_the_same_bytes_give_the_same_numbers():
    data = sound(rate=44100)
    assert decode(data, 16000).tobytes() == decode(data, 16000).tobytes()


# -------------------------------------------------------------------------------------------------------- checking


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64"])
def test_what_libsndfile_reads_is_a_sound(kind):
    assert check(sound(0.3, kind, 16000)) is None


def test_what_is_no_sound():
    assert check(b"") == "the file is empty"
    assert check(b"hello, this is a text") == "not a sound"
    assert check(sound(0)) == "it holds no sound"
    assert "values that are no numbers" in check(encoded(np.full((1, 10), np.nan, np.float32), subtype="FLOAT"))
    assert "values that are no numbers" in check(encoded(np.full((1, 10), np.inf, np.float32), subtype="FLOAT"))


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_sound_that_was_cut_off_is_damaged(kind):
    data = sound(2, kind, 16000)
    for part in (0.3, 0.7, 0.97):
        assert check(data[: int(len(data) * part)]).startswith("damaged"), part


def test_a_wav_whose_writer_did_not_know_the_length_is_a_sound():
    data = bytearray(sound())
    for unknown in (0xFFFFFFFF, 0):
        data[4:8] = struct.pack("<I", unknown)
        assert check(bytes(data)) is None


# --------------------------------------------------------------------------------------------------------- folders


def of(folder: Path) -> dict:
    return read(registry.build(Source, {"type": "audio_folder", "path": str(folder)}))


def test_a_folder_with_labels_captions_and_faults(tmp_path):
    good = [sound(seed=n) for n in range(4)]
    put(tmp_path, {"rain/a.wav": good[0], "rain/a.txt": " heavy rain \n", "wind/b ü.flac": sound(kind="FLAC"), "c.wav": good[1],
                   "wrong.ogg": good[2], "empty.wav": b"", "text.wav": "hello", "cut.wav": good[3][:-300]})  # fmt: skip
    found = of(tmp_path)
    assert found["rain/a.wav"] == Sample("rain/a.wav", audio=good[0], label="rain", caption="heavy rain")
    assert found["wind/b ü.flac"].label == "wind"
    assert (found["c.wav"].label, found["wrong.ogg"].audio) == (None, good[2]), "content decides, not the name"
    reasons = broken(found)
    assert reasons.pop("cut.wav").startswith("damaged")
    assert reasons == {"empty.wav": "the file is empty", "text.wav": "not a sound"}


def test_a_table_beside_sounds(tmp_path):
    put(tmp_path, {"x.wav": sound(), "metadata.csv": "file_name,label,text\nx.wav,7,two words\ngone.wav,1,\n"})
    found = of(tmp_path)
    assert (found["x.wav"].label, found["x.wav"].caption) == ("7", "two words")
    assert broken(found) == {"gone.wav": "named in the metadata, but there is no such file"}
