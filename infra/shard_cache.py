"""A bounded folder of objects that were fetched from a store, shared by the processes of a machine.

A file has the MD5 of its bytes as its name and appears whole. Each process hashes it when it first hands it out, and again
when its size or time of change is not what it was. The time of access is the time of use, so that a touch changes nothing
that is looked at. When there are too many bytes the longest unused files go; one that was handed out in the last ten
minutes stays, unless the folder has grown to twice its bound. What one process removes and another hands out cannot be
the same file: both happen under the folder's lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.objects import md5_of
from infra.storage import StorageError, file_lock

GRACE = 600.0  # seconds in which a file that was handed out is not evicted
_ABANDONED = 86400.0  # seconds after which a download that has not ended belongs to a process that is gone
_LOOKS = 50  # the folder is looked through when a process has fetched this part of the bound: the bound holds to 2%

#: path -> (size, time of change) of files whose content was checked in this process
_checked: dict[str, tuple[int, int]] = {}
#: folder -> bytes fetched by this process since it looked through it
_fetched: dict[str, int] = {}


class StoreError(StorageError):
    """Data that the store has not, or not as they were; the message says what and what to do."""

    user_error = True


class Damaged(StoreError):
    """An object whose bytes are not those of its name."""


def sound(path: Path, digest: str) -> bool:
    """Whether a file has this content; hashed once a process unless it changes. Raises FileNotFoundError."""
    mark = _mark(path)
    if _checked.get(str(path)) == mark:
        return True
    if md5_of(path) != digest:
        return False
    _checked[str(path)] = mark
    return True


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ShardCache:
    """`most` bytes of objects in `root`."""

    root: Path
    most: int

    def take(self, digest: str, download: Callable[[Path], None]) -> Path:
        """A file with this content, which `download` writes where it is not there. Raises Damaged when what was
        downloaded is something else, StoreError when the disk is full."""
        path = self.root / digest[:2] / digest[2:]
        with contextlib.suppress(FileNotFoundError):
            if self._use(path) and sound(path, digest):
                return path
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            self._download(download, fresh)
            if not sound(fresh, digest):
                raise Damaged(f"the object {digest} is damaged")
            size = fresh.stat().st_size
            os.replace(fresh, path)
        finally:
            _checked.pop(str(fresh), None)
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
        _checked[str(path)] = _mark(path)
        self._count(size, path)
        return path

    def _use(self, path: Path) -> bool:
        """Notes that a file is handed out now. Raises FileNotFoundError."""
        status = path.stat()
        with file_lock(self.root / ".lock"):
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return True

    def _download(self, download: Callable[[Path], None], fresh: Path) -> None:
        try:
            fresh.parent.mkdir(parents=True, exist_ok=True)
            download(fresh)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self.evict(0, keep=fresh)
            try:
                fresh.parent.mkdir(parents=True, exist_ok=True)
                download(fresh)
            except OSError as again:
                raise StoreError(
                    f"the disk of {self.root} is full; free some space, or let the cache take less of it "
                    f"(TESSERA_SHARD_CACHE_MB is {self.most >> 20})"
                ) from again

    def _count(self, size: int, path: Path) -> None:
        """Looks through the folder at first and then now and again: with many files that takes its time."""
        known = _fetched.get(str(self.root))
        if known is None or known + size > self.most // _LOOKS:
            self.evict(self.most, keep=path)
            _fetched[str(self.root)] = 0
        else:
            _fetched[str(self.root)] = known + size

    def evict(self, down_to: int, keep: Path) -> None:
        """Removes files, the longest unused first, until there are at most so many bytes."""
        found: list[tuple[float, int, str]] = []
        total = 0
        for folder in self.root.glob("??"):
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    total += status.st_size
                    found.append((status.st_atime, status.st_size, entry.path))
        now = time.time()
        for used, size, path in sorted(found):
            if total <= down_to:
                return
            pressed = total > 2 * self.most
            spared = _ABANDONED if os.path.basename(path).startswith(".") else 0.0 if pressed else GRACE
            if path != str(keep) and now - used > spared and self._remove(path, used):
                total -= size

    def _remove(self, path: str, used: float) -> bool:
        """False where another process has used the file since it was looked at."""
        with file_lock(self.root / ".lock"), contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_atime != used:
                return False
            os.unlink(path)
        return True
