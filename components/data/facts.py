"""What is measured of one sample, for validation, drift and views: plain numbers and names, no judgement.

Each modality has its facts; a sample has those of the modalities it holds, and a data set's index has a column for each.
A fact of content that cannot be read is None, so that an expectation on it fails where a number would have passed.
Absent on purpose: anything that needs a second sample (duplicates, balance) or a network (quality, safety).
"""

from __future__ import annotations

import io
import zlib

import numpy as np

from components.interfaces import ImageFormat, Modality, Sample

Facts = dict[str, float | str | None]

#: modality -> fact -> its type in the index
FACTS: dict[Modality, dict[str, str]] = {
    "image": {
        "width": "float64",  # pixels, as stored
        "height": "float64",
        "aspect": "float64",  # width / height
        "contrast": "float64",  # standard deviation of the brightness of its centre square, 0 .. 127.5
        "mode": "string",  # Pillow's name of its channels: L, RGB, RGBA, P, CMYK, I;16, ...
    },
    "text": {
        "characters": "float64",
        "words": "float64",  # between spaces
        "lines": "float64",
        "language": "string",  # components.data.language: a rule of thumb; "code", or "und" for none
        "printable": "float64",  # share of characters that are printable or space; U+FFFD is neither
        "ascii": "float64",  # share of characters
        "repetition": "float64",  # share of characters in lines that stood in this text before (Gopher, arXiv:2112.11446)
        "compression": "float64",  # compressed size over size of the first 64 KiB; small: says the same again and again
    },
    "audio": {
        "seconds": "float64",
        "rate": "float64",  # samples a second, as stored
        "channels": "float64",
        "peak": "float64",  # dBFS, all channels; -120 for nothing
        "rms": "float64",  # dBFS
        "silence": "float64",  # share of frames of 20 ms with an RMS under -60 dBFS in all channels
        "clipping": "float64",  # share of samples at full scale
    },
    "array": {
        "rows": "float64",  # the first axis
        "columns": "float64",  # the product of all others
        "finite": "float64",  # share of values
        "minimum": "float64",  # of the finite ones
        "maximum": "float64",
    },
}

_THUMB = ImageFormat(64, 1)  # what contrast is measured on
_ZLIB = 1 << 16  # bytes that are compressed
_FLOOR = -120.0  # dBFS, for digital silence
_SILENT = 10 ** (-60 / 20)  # amplitude
_FRAMES_PER_SECOND = 50
_BLOCK_SECONDS = 20  # decoded at a time, so that memory does not grow with the sound
_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}


def measure(sample: Sample) -> Facts:
    """All facts of the modalities that a sample has; None for those of content that cannot be read.

    >>> measure(Sample("a", text="One line.\\nAnd a second one."))["words"]
    6.0
    """
    found: Facts = {}
    if sample.image is not None:
        found |= _image(sample.image)
    if sample.text is not None:
        found |= _text(sample.text)
    if sample.audio is not None:
        found |= _audio(sample.audio)
    if sample.array is not None:
        found |= _array(sample.array)
    return found


def _unreadable(modality: Modality) -> Facts:
    return dict.fromkeys(FACTS[modality])


def _image(data: bytes) -> Facts:
    from PIL import Image

    from components.data.images import check, fit

    try:
        with Image.open(io.BytesIO(data)) as picture:
            (width, height), mode = picture.size, picture.mode
            picture.draft(None, (3 * _THUMB.size, 3 * _THUMB.size))  # large JPEGs at a fraction of their size
            contrast = float(fit(picture, _THUMB).std())
    except Exception:  # a source of one's own may not have looked, and Pillow's decoders raise nearly anything
        if check(data) is None:
            raise
        return _unreadable("image")
    return {
        "width": float(width),
        "height": float(height),
        "aspect": width / height,
        "contrast": contrast,
        "mode": mode,
    }


def _text(text: str) -> Facts:
    from components.data.language import detect

    size = len(text)
    lines = text.splitlines()
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        stripped = line.strip()
        if stripped in seen:
            repeated += len(stripped)
        elif stripped:
            seen.add(stripped)
    head = text[:_ZLIB].encode("utf-8", "surrogatepass")[:_ZLIB]
    return {
        "characters": float(size),
        "words": float(len(text.split())),
        "lines": float(len(lines)),
        "language": detect(text),
        "printable": _printable(text) / size if size else None,
        "ascii": (size if text.isascii() else len(text.encode("ascii", "ignore"))) / size if size else None,
        "repetition": repeated / size if size else None,
        "compression": len(zlib.compress(head, 6)) / len(head) if size else None,
    }


def _printable(text: str) -> int:
    """How many characters are printable or space."""
    solid = "".join(text.split()).replace("\ufffd", "")
    spaces = len(text) - len("".join(text.split()))
    return spaces + (len(solid) if solid.isprintable() else sum(map(str.isprintable, solid)))


def _audio(data: bytes) -> Facts:
    import soundfile

    peak = squares = clipped = silent = frames = 0.0
    count = 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            rate, channels = sound.samplerate, sound.channels
            full = 1.0 - 2.0 ** (1 - _BITS[sound.subtype]) if sound.subtype in _BITS else 1.0  # the largest number
            frame = max(1, rate // _FRAMES_PER_SECOND)
            while len(block := sound.read(frame * _FRAMES_PER_SECOND * _BLOCK_SECONDS, "float32", always_2d=True)):
                loud = np.abs(block)  # [samples, channels]
                peak = max(peak, float(loud.max()))
                squares += float(np.square(block, dtype=np.float64).sum())
                clipped += float((loud >= full).sum())
                starts = np.arange(0, len(block), frame)
                energy = np.add.reduceat(np.square(block, dtype=np.float64), starts)  # [frames, channels]
                length = np.diff(starts, append=len(block))[:, None]
                silent += float((np.sqrt(energy / length).max(axis=1) < _SILENT).sum())
                frames += len(starts)
                count += len(block)
    except soundfile.LibsndfileError:
        return _unreadable("audio")
    if not count or not np.isfinite(squares):
        return _unreadable("audio")
    return {
        "seconds": count / rate,
        "rate": float(rate),
        "channels": float(channels),
        "peak": _decibel(peak),
        "rms": _decibel((squares / (count * channels)) ** 0.5),
        "silence": silent / frames,
        "clipping": clipped / (count * channels),
    }


def _decibel(amplitude: float) -> float:
    """Amplitude relative to full scale -> dBFS."""
    return max(_FLOOR, 20 * float(np.log10(amplitude))) if amplitude else _FLOOR


def _array(data: bytes) -> Facts:
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        return _unreadable("array")
    if array.dtype.kind not in "biuf" or not array.size:
        return _unreadable("array")
    finite = np.isfinite(array)
    values = array[finite]
    return {
        "rows": float(array.shape[0] if array.ndim else 1),
        "columns": float(array.size // (array.shape[0] if array.ndim else 1)),
        "finite": float(finite.mean()),
        "minimum": float(values.min()) if values.size else None,
        "maximum": float(values.max()) if values.size else None,
    }
