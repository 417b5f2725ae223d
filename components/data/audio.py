"""Sounds in: encoded bytes (WAV, FLAC, OGG, whatever libsndfile reads) -> arrays of one rate and number of channels.

Mechanism: 1. `check` decodes a sound once, a few seconds at a time, and says what is wrong with it; 2. `decode` brings it to
the wanted channels (the mean of all, repeated if need be) and, by a polyphase filter, to the wanted rate: a Kaiser-windowed
sinc whose stop band begins at the lower of the two Nyquist frequencies, 80 dB down, so that nothing folds back.
Absent on purpose: loudness, cutting and padding - what a network wants to see is the tokenizer's business.
"""

from __future__ import annotations

import io
from functools import lru_cache
from math import gcd

import numpy as np

_FRAMES = 1 << 16  # decoded at a time by `check`
_STOP_DB = 80.0  # what is left of a tone that the new rate cannot hold
_TRANSITION = 0.1  # of the lower Nyquist frequency: where the filter falls from 1 to nothing


def check(data: bytes) -> str | None:
    """Why these bytes are not a sound; None when they are."""
    import soundfile

    if not data:
        return "the file is empty"
    missing = _cut_wav(data)
    if missing:
        return missing
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            expected, found = sound.frames, 0
            while len(block := sound.read(_FRAMES, dtype="float32")):
                found += len(block)
                if not np.isfinite(block).all():
                    return "damaged: it holds values that are no numbers"
    except soundfile.LibsndfileError as error:
        unknown = error.code == 1  # SF_ERR_UNRECOGNISED_FORMAT
        return "not a sound" if unknown else f"damaged: {error.error_string}"
    if not found:
        return "it holds no sound"
    if 0 < found < expected < 1 << 62:  # of a stream without a length libsndfile says the largest number
        return f"damaged: it ends after {found} of {expected} frames"
    return None


def decode(data: bytes, rate: int, channels: int = 1) -> np.ndarray:
    """Encoded bytes -> float32 [channels, samples] at `rate` samples a second, full scale at 1.

    >>> import numpy as np, soundfile
    >>> soundfile.write(file := io.BytesIO(), np.zeros((44100, 2)), 44100, format="FLAC")
    >>> decode(file.getvalue(), rate=16000).shape
    (1, 16000)
    """
    import soundfile

    samples, original = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    sound = samples.T  # [channels of the file, samples]
    if len(sound) != channels:
        sound = np.repeat(sound.mean(axis=0, keepdims=True), channels, axis=0)
    return resample(sound, original, rate)


def resample(sound: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """float32 [channels, samples] from one rate to another; the length is rounded up."""
    from scipy.signal import resample_poly

    if rate == new_rate:
        return np.ascontiguousarray(sound, dtype=np.float32)
    divisor = gcd(rate, new_rate)
    up, down = new_rate // divisor, rate // divisor
    return resample_poly(sound, up, down, axis=-1, window=_filter(max(up, down))).astype(np.float32)


@lru_cache(maxsize=8)
def _filter(factor: int) -> np.ndarray:
    """Low-pass at `factor` times the lower rate: the middle of its slope lies below the Nyquist frequency by half of the
    transition, so that the stop band begins at Nyquist."""
    from scipy.signal import firwin, kaiserord

    taps, beta = kaiserord(_STOP_DB, _TRANSITION / factor)
    return firwin(taps | 1, (1 - _TRANSITION / 2) / factor, window=("kaiser", beta))


def _cut_wav(data: bytes) -> str | None:
    """libsndfile reads what there is of a WAV file that was cut off, and says nothing; its header knows the length."""
    if data[:4] != b"RIFF" or len(data) < 12:
        return None
    promised = int.from_bytes(data[4:8], "little") + 8
    if promised > 0xFFFF0000 or promised == 8:  # written by a program that did not know the length
        return None
    return f"damaged: it ends after {len(data)} of {promised} bytes" if len(data) < promised - 1 else None
