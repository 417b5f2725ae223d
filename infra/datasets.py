"""Data sets straight in the DVC remote: workers put shards, the driver seals the tree, readers fetch by hash.

    store = datasets.store(settings)                       # picklable; opens its own connections in each process
    shard = store.put("train/part-00000-000.parquet", data)        # on any worker, any number of times
    sealed = datasets.seal(store, shards)                  # all are there: now the tree object, which is the commit
    files = StoreFiles(store, datasets.tree(store, sealed.md5))    # names, and local files of their content

No byte of a shard passes through the driver. What `seal` writes is what DVC itself would: `dvc pull` and `dvc get` work
on it. Leaves first, the tree last, for a tree in the remote makes DVC believe that all its leaves are there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.objects import FolderObjects, Objects, md5_of, objects
from infra.settings import Settings
from infra.storage import StorageError

SEALED = "sealed.json"  # in the work folder of a stage whose output stays in the store
_FEW = 2000  # leaves that are looked for one by one on S3; of more, the tree object must do
_GRACE = 600.0  # seconds in which a file that was handed out is not evicted


class StoreError(StorageError):
    """Data that the store has not, or not as they were; the message says what and what to do."""

    user_error = True


@dataclass(frozen=True)
class Shard:
    """An object of a data set: its path there, the MD5 of its bytes, its size."""

    name: str
    digest: str
    size: int


@dataclass(frozen=True)
class Sealed:
    """A whole data set: the name of its tree object, number of files, bytes."""

    md5: str
    nfiles: int
    size: int


@dataclass(frozen=True)
class Store:
    """Where the data of a project are (`url`: a folder or s3://), and the cache through which they are read here."""

    url: str
    cache: Path
    cache_bytes: int

    @property
    def objects(self) -> Objects:
        return objects(self.url)

    def put(self, name: str, data: bytes) -> Shard:
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.objects.put(digest, data)
        return Shard(name, digest, len(data))

    def put_file(self, name: str, path: Path) -> Shard:
        digest = md5_of(path)
        self.objects.put_file(digest, path)
        return Shard(name, digest, path.stat().st_size)

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Which of these objects the store has not."""
        return self.objects.missing(digests)

    def fetch(self, digest: str) -> Path:
        """A local file with this content: the object itself where the store is a folder, else a copy in the cache. Checked
        against its hash once a process. Raises StoreError."""
        own = self.objects.local(digest)
        if own is None and isinstance(self.objects, FolderObjects):
            raise StoreError(f"{self.url} has lost the object {digest}; `tessera data verify` says what it belongs to")
        if own is not None:
            if not _known(own) and md5_of(own) != digest:
                raise StoreError(
                    f"the object {digest} in {self.url} is damaged; `tessera data verify` says what it belongs to, "
                    "`tessera data repair` mends it where this machine still has the data"
                )
            _checked[str(own)] = _mark(own)
            return own
        return self._cached(digest)

    def _cached(self, digest: str) -> Path:
        path = self.cache / digest[:2] / digest[2:]
        with contextlib.suppress(FileNotFoundError):
            if _known(path) or md5_of(path) == digest:
                os.utime(path)  # used now
                _checked[str(path)] = _mark(path)
                return path
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            self._download(digest, fresh)
            if md5_of(fresh) != digest:
                raise StoreError(
                    f"the object {digest} in {self.url} is damaged; `tessera data verify --thorough` says what it "
                    "belongs to"
                )
            os.replace(fresh, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
        _checked[str(path)] = _mark(path)
        evict(self.cache, self.cache_bytes, keep=path)
        return path

    def _download(self, digest: str, target: Path) -> None:
        try:
            self.objects.download(digest, target)
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.url} has lost the object {digest}; `tessera data verify` says what it belongs to"
            ) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            evict(self.cache, 0, keep=target)
            try:
                self.objects.download(digest, target)
            except OSError as again:
                raise StoreError(
                    f"the disk of {self.cache} is full; free some space, or set TESSERA_SHARD_CACHE_MB to less than the "
                    f"{self.cache_bytes >> 20} MB that the cache may take"
                ) from again


#: path -> (size, time of change) of files whose content was checked in this process
_checked: dict[str, tuple[int, int]] = {}


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _known(path: Path) -> bool:
    return _checked.get(str(path)) == _mark(path)


def evict(cache: Path, most: int, keep: Path) -> None:
    """Removes files from a cache, the longest unused first, until it holds at most `most` bytes. What was handed out a
    moment ago stays, unless the cache has grown to twice its size."""
    found: list[tuple[float, int, Path]] = []
    for path in cache.glob("??/*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    now = time.time()
    for used, size, path in sorted(found):
        if total <= most:
            return
        if path != keep and (now - used > _GRACE or total > 2 * most):
            path.unlink(missing_ok=True)
            total -= size


def store(settings: Settings, url: str = "") -> Store:
    """The project's store."""
    place = url or settings.remote
    if "://" not in place:
        place = str((settings.project / place).resolve())
    return Store(place, settings.home / "shards", settings.shard_cache_mb << 20)


# ---------------------------------------------------------------------------------------------------------- trees


def seal(place: Store, shards: Iterable[Any]) -> Sealed:
    """Writes the tree object over objects that were put (anything with name, digest, size). Raises StoreError when one is
    not there, or two of one name differ."""
    named: dict[str, Shard] = {}
    for shard in shards:
        before = named.setdefault(shard.name, Shard(shard.name, shard.digest, shard.size))
        if before.digest != shard.digest:
            raise StoreError(f"two different objects want to be {shard.name}: {before.digest} and {shard.digest}")
    lost = place.objects.missing(shard.digest for shard in named.values())
    if lost:
        names = [name for name, shard in named.items() if shard.digest in lost]
        raise StoreError(f"{len(lost)} objects are not in {place.url}, e.g. {names[0]}; run the same command again")
    entries = {name: shard.digest for name, shard in named.items()}
    data = tree_bytes(entries)
    digest = tree_digest(data)
    place.objects.put(digest, data)
    return Sealed(digest, len(named), sum(shard.size for shard in named.values()))


def append(place: Store, base: str, shards: Sequence[Any]) -> Sealed:
    """A new version of a data set: the tree `base` with shards added or replaced. Nothing old is downloaded but its tree;
    the size counts the new shards only, for a tree has no sizes."""
    entries = tree(place, base) | {shard.name: shard.digest for shard in shards}
    lost = place.objects.missing(set(entries.values()))
    if lost:
        raise StoreError(f"{len(lost)} objects of the new version are not in {place.url}")
    data = tree_bytes(entries)
    digest = tree_digest(data)
    place.objects.put(digest, data)
    return Sealed(digest, len(entries), sum(shard.size for shard in shards))


def tree_bytes(entries: Mapping[str, str]) -> bytes:
    """A directory object as DVC writes it."""
    rows = [{"md5": digest, "relpath": name} for name, digest in sorted(entries.items())]
    return json.dumps(rows, sort_keys=True).encode()


def tree_digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest() + ".dir"


def tree(place: Store, digest: str) -> dict[str, str]:
    """name -> MD5 of the files of a tree. Raises StoreError."""
    try:
        rows = json.loads(place.objects.get(digest))
    except FileNotFoundError as error:
        raise StoreError(f"{place.url} has lost the data set {digest}; run the stage that makes it again") from error
    except json.JSONDecodeError as error:
        raise StoreError(f"the data set {digest} in {place.url} is damaged: {error}") from error
    return {row["relpath"]: row["md5"] for row in rows}


def whole(place: Store, digest: str) -> bool:
    """Whether a tree and its leaves are in the store. Of more than 2,000 leaves on S3 only the tree is looked for, which
    is written last; `tessera data verify` looks for all."""
    try:
        entries = tree(place, digest)
    except StoreError:
        return False
    if len(entries) > _FEW and not isinstance(place.objects, FolderObjects):
        return True
    return not place.objects.missing(set(entries.values()))


@dataclass(frozen=True)
class StoreFiles:
    """A tree of the store as `components.interfaces.Files`. `entries`: name -> MD5."""

    place: Store
    entries: Mapping[str, str]

    def names(self) -> list[str]:
        return sorted(self.entries)

    def path(self, name: str) -> Path:
        if name not in self.entries:
            raise FileNotFoundError(f"the data set has no {name}")
        return self.place.fetch(self.entries[name])


# ------------------------------------------------------------------------------------------------------ of a run


def note(sealed: Sealed) -> bytes:
    """What stands in `work/<stage>/sealed.json`."""
    return (json.dumps(asdict(sealed), indent=1, sort_keys=True) + "\n").encode()


def sealed(run: Path, stage: str) -> Sealed | None:
    """The output of a stage that stays in the store; None for one in the run's folder."""
    try:
        return Sealed(**json.loads((run / "work" / stage / SEALED).read_text()))
    except FileNotFoundError:
        return None


def of_run(run: Path, settings: Settings) -> Store:
    """The store of a run: the one its own configuration names, for a clone of a project reads from where it came from."""
    config = ConfigParser(interpolation=None)
    with contextlib.suppress(ConfigError):
        config.read(run / ".dvc" / "config")
    url = config.get("'remote \"tessera\"'", "url", fallback="")
    if url and "://" not in url:
        url = os.path.abspath(run / ".dvc" / url)
    return store(settings, url)


def files(run: Path, stage: str, settings: Settings) -> StoreFiles | None:
    """The committed output of a stage as it is in the store; None where the stage has none there."""
    found = sealed(run, stage)
    if found is None:
        return None
    place = of_run(run, settings)
    return StoreFiles(place, tree(place, found.md5))
