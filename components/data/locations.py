"""Where data are read from: a folder or file here, or a URL that fsspec knows (`s3://bucket/prefix`, `https://...`).

Mechanism: 1. a path without `://` is read with the operating system, and fsspec is never imported; 2. a URL goes through
`components.data.remote`; 3. what concerns the whole place (not there, empty, no credentials) raises one clear
`SourceError`; what concerns one file stays an `OSError`, and the source makes it a `Broken`.
Absent on purpose: writing, patterns, and any cache - a listing is always of now.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from components.data.remote import SourceError, explaining, filesystem, is_s3

_AT_ONCE = 16  # small files fetched side by side
_BLOCK = 8 << 20  # bytes fetched ahead of a reader
_MARKS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")

__all__ = [
    "Entry", "SourceError", "fingerprint", "is_url", "join", "listing", "open", "read_bytes", "read_each", "stat", "why",
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A file of a listing. `mark` changes with the content: the time of the last change, or the store's ETag."""

    name: str  # below the folder, with '/'; "" where the path is a file itself
    size: int  # bytes
    mark: str


def is_url(path: str) -> bool:
    """Whether fsspec reads this path.

    >>> is_url("s3://bucket/pictures"), is_url("pictures"), is_url("/data/a:b")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def join(path: str, name: str) -> str:
    """The path of a file of a listing."""
    return f"{path.rstrip('/')}/{name}" if name else path


def listing(path: str, expected: str = "") -> list[Entry]:
    """Every file below a folder, or the one that `path` is, sorted by name; hidden files and folders (`.x`) left out,
    linked ones followed. Raises SourceError where there is nothing, and says what was `expected`."""
    found = _remote_files(path) if is_url(path) else _local_files(path)
    if not found:
        wanted = f"expected {expected}" if expected else "give the place that holds your data with --data"
        raise SourceError(f"'{path}' holds no files; {wanted}")
    return sorted(found, key=lambda entry: entry.name)


def stat(path: str, name: str = "") -> Entry:
    """One file. Raises OSError where it is not there."""
    if is_url(path):
        with explaining(path):
            files, root = filesystem(path)
            return _entry(name, files.info(join(root, name)))
    found = _here(path, name).stat()
    return Entry(name, found.st_size, str(found.st_mtime_ns))


def read_bytes(path: str, name: str = "") -> bytes:
    """The content of a file. Raises OSError where this file cannot be read, SourceError where the place cannot."""
    if is_url(path):
        with explaining(path):
            files, root = filesystem(path)
            return files.cat_file(join(root, name))
    return _here(path, name).read_bytes()


def read_each(path: str, names: Sequence[str]) -> Iterator[bytes | OSError]:
    """The content of each file in this order, or why it cannot be read; from a URL some at a time, side by side."""

    def read(name: str) -> bytes | OSError:
        try:
            return read_bytes(path, name)
        except OSError as error:
            return error

    if not is_url(path):
        yield from map(read, names)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(names), _AT_ONCE):
            yield from pool.map(read, names[first : first + _AT_ONCE])


@contextlib.contextmanager
def open(path: str, name: str = "") -> Iterator[IO[bytes]]:
    """A file to read from any position; of a URL only the ranges that are asked for are fetched. Errors as `read_bytes`,
    also those that come while it is read."""
    if not is_url(path):
        with _here(path, name).open("rb") as file:
            yield file
        return
    with explaining(path):
        files, root = filesystem(path)
        remote = files.open(join(root, name), "rb", block_size=_BLOCK)
    with remote, io.BufferedReader(_Remote(path, remote), 1 << 20) as file:
        yield file


def fingerprint(path: str) -> str:
    """A hash of the names, sizes and times (or ETags) of all files of a place: tells whether it has changed, without
    reading it. Raises SourceError as `listing`."""
    digest = hashlib.sha256()
    for entry in listing(path):
        digest.update(f"{entry.name}\0{entry.size}\0{entry.mark}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def why(error: OSError) -> str:
    """Why one file cannot be read, as the reason of a `Broken`."""
    return f"cannot be read: {error.strerror or str(error) or type(error).__name__}"


# ----------------------------------------------------------------------------------------------------------- here


def _here(path: str, name: str = "") -> Path:
    return Path(join(path, name)).expanduser()


def _local_files(path: str) -> list[Entry]:
    root = str(_here(path))
    if os.path.isfile(root):
        return [stat(path)]
    if not os.path.isdir(root):
        raise SourceError(f"there is no folder or file '{path}'; give the place that holds your data with --data")
    found: list[Entry] = []
    waiting = [(root, "", frozenset({os.path.realpath(root)}))]
    while waiting:
        folder, prefix, above = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                children = list(entries)
        except OSError as error:
            if not prefix:
                raise SourceError(f"'{path}' cannot be listed: {error.strerror}") from error
            found.append(Entry(prefix.rstrip("/"), 0, ""))  # reading it says why: nothing is left out in silence
            continue
        for child in children:
            name = prefix + child.name
            if child.name.startswith("."):
                continue
            linked = child.is_symlink()
            if os.path.isdir(child.path) if linked else child.is_dir():
                real = os.path.realpath(child.path)
                if real not in above:  # a link to a folder that it is in has no end
                    waiting.append((child.path, f"{name}/", above | {real}))
            elif os.path.isfile(child.path) if linked else child.is_file():
                status = child.stat()
                found.append(Entry(name, status.st_size, str(status.st_mtime_ns)))
            elif linked:
                found.append(Entry(name, 0, ""))  # leads nowhere; reading it says so
    return found


# --------------------------------------------------------------------------------------------------------- remote


class _Remote(io.RawIOBase):
    """A remote file that explains its errors itself: whoever reads it (Parquet, tar) could take them for damage."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explaining(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _remote_files(path: str) -> list[Entry]:
    try:
        with explaining(path):
            files, root = filesystem(path)
            files.invalidate_cache()  # some keep what they have listed
            if not is_s3(path) and files.isfile(root):  # https: a file only, what is beside it cannot be known
                return [_entry("", files.info(root))]
            found = files.find(root, detail=True)
    except FileNotFoundError as error:
        raise SourceError(f"there is nothing at '{path}'") from error
    except OSError as error:
        raise SourceError(f"'{path}' cannot be listed: {error}") from error
    base = root.rstrip("/")
    named = ((name[len(base) :].strip("/"), about) for name, about in found.items() if not name.endswith("/"))
    return [
        _entry(name, about)
        for name, about in named
        if about.get("type") == "file" and not any(part.startswith(".") for part in name.split("/"))
    ]


def _entry(name: str, about: Mapping[str, Any]) -> Entry:
    mark = next((str(about[key]) for key in _MARKS if about.get(key)), "")
    return Entry(name, int(about.get("size") or 0), mark)
