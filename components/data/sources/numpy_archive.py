"""Arrays of NumPy: each row along the first axis of an `.npz` or `.npy` file is a sample (motion, actions, signals).

    moves.npz    moves [5000, 120, 22, 3], kinds [5000]    {type: numpy_archive, path: moves.npz, array: moves, labels: kinds}
    ecg/a.npy    [800, 2, 1000]                            {type: numpy_archive, path: ecg}

Mechanism: 1. the header of an array says its shape and type; rows are read one after another, never the whole; 2. a large
`.npy` file is divided by rows, an archive is read in one go; 3. each row becomes an array in .npy format of its own; 4. the
labels are an array of the same archive, or an `.npy` file in the same folder. The key is file and row: `moves.npz#17`.
Absent on purpose: arrays of Python objects (they would have to be unpickled), and pictures - they are arrays here, too.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

import numpy as np

from components.data import locations
from components.data.sources import _parts
from components.data.sources._checked import checked
from components.interfaces import Broken, Part, Sample, Source

_ENDINGS = (".npz", ".npy")


class NumpyArchive(Source):
    """Rows of the arrays of a file, a folder or a URL. `array` names the one in an archive (needed where it holds several),
    `labels` the array, or `.npy` file, with a label for each row.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/waves.npy", np.zeros((2, 8)))
    ...     [sample.key for sample in NumpyArchive(path=folder).samples()]
    ['waves.npy#0', 'waves.npy#1']
    """

    modalities = ("array",)

    def __init__(self, *, path: str, array: str | None = None, labels: str | None = None) -> None:
        self.path, self.array, self.labels = path, array, labels

    def parts(self) -> Sequence[Part]:
        found = _parts.of_kind(self.path, locations.listing(self.path, "arrays"), _ENDINGS, "arrays")
        found = [entry for entry in found if not entry.name or entry.name.rpartition("/")[2] != self._label_file()]
        parts: list[Part] = []
        small: list[tuple[list[str], int]] = []
        for entry in found:
            rows = _parts_of_rows(self.path, entry) if entry.size > _parts.BYTES else []
            if rows:
                parts += [*_parts.divide(small), *rows]
                small = []
            else:
                small.append(([entry.name], entry.size))
        return parts + _parts.divide(small)

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for name in part.files:
            key = _parts.key_of(self.path, name)
            try:
                with locations.open(self.path, name) as file:
                    yield from self._file(key, name, file, part)
            except _Unusable as error:
                yield Broken(key, str(error))
            except OSError as error:
                yield Broken(key, locations.why(error))

    def _file(self, key: str, name: str, file: IO[bytes], part: Part) -> Iterator[Sample | Broken]:
        start = file.read(2)
        file.seek(0)
        if not start:
            raise _Unusable("the file is empty")
        with ExitStack() as stack:
            if start == b"PK":
                try:
                    archive = stack.enter_context(zipfile.ZipFile(file))
                except zipfile.BadZipFile as error:
                    raise _Unusable(f"damaged: {error}") from error
                array = stack.enter_context(_opened(archive, self.array))
                labels = _whole(_opened(archive, self.labels)) if self.labels else None
            else:
                array, labels = file, self._labels_beside(name)
            header = _Header.of(array)
            if labels is not None and labels.shape != (header.rows,):
                raise _Unusable(
                    f"'{self.labels}' has the shape {labels.shape}; expected one label for each of {header.rows} rows"
                )
            yield from _rows(key, array, header, part, labels)

    def _label_file(self) -> str | None:
        return None if self.labels is None else self.labels.removesuffix(".npy") + ".npy"

    def _labels_beside(self, name: str) -> np.ndarray | None:
        file = self._label_file()
        if file is None:
            return None
        folder = self.path if name else self.path.rstrip("/").rpartition("/")[0] or "."
        try:
            return _whole(io.BytesIO(locations.read_bytes(folder, name[: name.rfind("/") + 1] + file)))
        except OSError as error:
            raise _Unusable(f"its labels, {file} beside it: {locations.why(error)}") from error


class _Unusable(Exception):
    """A file that holds no rows; the message says why."""


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @classmethod
    def of(cls, file: IO[bytes]) -> _Header:
        """Reads it; the file then stands at the first number."""
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except (ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise _Unusable(f"not an array in .npy format: {error}") from error
        if dtype.hasobject:
            raise _Unusable("the array holds Python objects, which would have to be unpickled")
        if len(shape) < 2 or math.prod(shape) == 0:
            raise _Unusable(f"the array has the shape {shape}; expected rows of numbers, [samples, ...]")
        return cls(shape, dtype, fortran)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])


def _parts_of_rows(path: str, entry: locations.Entry) -> list[Part]:
    """A large `.npy` file by rows; none where it is something else, or not written row by row."""
    try:
        with locations.open(path, entry.name) as file:
            header = _Header.of(file)
    except (OSError, _Unusable):
        return []  # reading says why
    step = max(1, _parts.BYTES // header.row_bytes)
    return [] if header.fortran else _parts.ranges(entry.name, header.rows, step)


def _rows(
    key: str, file: IO[bytes], header: _Header, part: Part, labels: np.ndarray | None
) -> Iterator[Sample | Broken]:
    stop = header.rows if part.stop is None else min(part.stop, header.rows)
    whole = None
    if header.fortran:  # a row is scattered over all of it
        flat = np.frombuffer(file.read(header.rows * header.row_bytes), header.dtype)
        if flat.size < math.prod(header.shape):
            raise _Unusable(f"damaged: it ends before its {header.rows} rows do")
        whole = flat.reshape(header.shape, order="F")
    elif part.start:
        file.seek(part.start * header.row_bytes, io.SEEK_CUR)
    for number in range(part.start, stop):
        if whole is not None:
            row = whole[number]
        else:
            try:
                data = file.read(header.row_bytes)
            except (zlib.error, zipfile.BadZipFile, EOFError) as error:
                yield Broken(key, f"damaged from row {number} on: {error}")
                return
            if len(data) < header.row_bytes:
                yield Broken(key, f"damaged: it ends at row {number} of {header.rows}")
                return
            row = np.frombuffer(data, header.dtype).reshape(header.shape[1:])
        label = None if labels is None else labels[number]
        text = (
            label.decode("utf-8", "backslashreplace")
            if isinstance(label, bytes)
            else None
            if label is None
            else str(label)
        )
        yield checked(Sample(f"{key}#{number}", array=_npy(row), label=text or None))


def _npy(row: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(row), allow_pickle=False)
    return buffer.getvalue()


def _whole(file: IO[bytes]) -> np.ndarray:
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise _Unusable(f"its labels cannot be read: {error}") from error


def _opened(archive: zipfile.ZipFile, name: str | None) -> IO[bytes]:
    names = [member.removesuffix(".npy") for member in archive.namelist()]
    if name is None and len(names) != 1:
        raise _Unusable(f"it holds several arrays; say which with `array` (there are: {', '.join(names)})")
    if name is not None and name not in names:
        raise _Unusable(f"there is no array '{name}' (there are: {', '.join(names)})")
    try:
        return archive.open(archive.namelist()[names.index(name) if name else 0])
    except (zipfile.BadZipFile, RuntimeError) as error:  # the latter: a password, an unknown compression
        raise _Unusable(f"damaged: {error}") from error
