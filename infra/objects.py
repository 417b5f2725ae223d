"""Objects named by the MD5 of their bytes, in the layout of a DVC remote: `files/md5/ab/cdef...`, in a folder or on S3.

An object is there whole or not at all, and putting it again changes nothing; so any number of workers write at once and a
retry is free. A worker needs hashlib and boto3, no DVC, no repository and no lock. Putting what is there already makes an
old object young again, so that whoever collects old garbage leaves what a worker counts on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Protocol

EMPTY = "d41d8cd98f00b204e9800998ecf8427e"  # the MD5 of no bytes
YOUNG = 6 * 3600.0  # seconds; older objects are made young when they are put again


def md5_of(path: Path) -> str:
    """The MD5 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class Objects(Protocol):
    """A store of objects."""

    def put(self, digest: str, data: bytes) -> None: ...

    def put_file(self, digest: str, path: Path) -> None: ...

    def get(self, digest: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def download(self, digest: str, target: Path) -> None:
        """Into a new file. Raises FileNotFoundError."""
        ...

    def hashed(self, digest: str) -> str:
        """The MD5 of the bytes that are there under this name, read anew. Raises FileNotFoundError."""
        ...

    def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """The bytes of each of these objects; those that are not there are left out."""
        ...

    def every(self) -> Iterator[tuple[str, int, float]]:
        """(digest, bytes, seconds since it was written) of all objects."""
        ...

    def remove(self, digest: str) -> None: ...

    def sweep(self, older: float) -> int:
        """Removes what writers that were killed so many seconds ago left half-written; returns how many there were."""
        ...

    def local(self, digest: str) -> Path | None:
        """The object's own file, where the store is a folder here."""
        ...


def place(digest: str) -> str:
    return f"files/md5/{digest[:2]}/{digest[2:]}"


class FolderObjects:
    """Objects as files, read-only: DVC takes such a one as verified.

    An empty file under the name of something else is what a power cut leaves of a new file, and counts as not there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, digest: str, data: bytes) -> None:
        def write(target: str) -> None:
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "wb") as file:
                file.write(data)

        self._create(digest, len(data), write)

    def put_file(self, digest: str, path: Path) -> None:
        def write(target: str) -> None:
            shutil.copyfile(path, target)
            os.chmod(target, 0o444)

        self._create(digest, path.stat().st_size, write)

    def _create(self, digest: str, size: int, write: Callable[[str], None]) -> None:
        folder, name = f"{self.root}/files/md5/{digest[:2]}", digest[2:]
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(f"{folder}/{name}")
            if status.st_size == size:
                if time.time() - status.st_mtime > YOUNG:
                    os.utime(f"{folder}/{name}")
                return
        os.makedirs(folder, exist_ok=True)
        fresh = f"{folder}/.{name}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            write(fresh)
            os.replace(fresh, f"{folder}/{name}")
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh)
            raise

    def get(self, digest: str) -> bytes:
        return (self.root / place(digest)).read_bytes()

    def download(self, digest: str, target: Path) -> None:
        shutil.copyfile(self.root / place(digest), target)

    def hashed(self, digest: str) -> str:
        return md5_of(self.root / place(digest))

    def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(f"{self.root}/{place(digest)}").st_size
                if size or digest == EMPTY:
                    found[digest] = size
        return found

    def every(self) -> Iterator[tuple[str, int, float]]:
        now = time.time()
        for name, entry in self._entries():
            if not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if status.st_size or name == EMPTY:
                        yield name, status.st_size, now - status.st_mtime

    def _entries(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        for folder in sorted((self.root / "files" / "md5").glob("??")):
            for entry in os.scandir(folder):
                yield folder.name + entry.name, entry

    def remove(self, digest: str) -> None:
        (self.root / place(digest)).unlink(missing_ok=True)

    def sweep(self, older: float) -> int:
        swept = 0
        for _, entry in self._entries():
            with contextlib.suppress(FileNotFoundError):
                if entry.name.startswith(".") and time.time() - entry.stat().st_mtime > older:
                    os.unlink(entry.path)
                    swept += 1
        return swept

    def local(self, digest: str) -> Path | None:
        path = self.root / place(digest)
        return path if path.is_file() else None


def objects(url: str) -> Objects:
    """The store behind a folder's name or an s3:// URL; one client for a process, a place and its account."""
    account = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _opened(url, os.getpid(), account)


@lru_cache(maxsize=8)
def _opened(url: str, _process: int, _account: tuple[tuple[str, str], ...]) -> Objects:
    if not url.startswith("s3://"):
        return FolderObjects(Path(url))
    from infra.s3_objects import S3Objects

    return S3Objects(url)
