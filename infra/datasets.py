"""Data sets straight in the DVC remote: workers put shards, the driver seals the tree, readers fetch by hash.

    store = datasets.store(settings)                       # picklable; opens its own connections in each process
    shard = store.put("train/part-00000-000.parquet", data)        # on any worker, any number of times
    sealed = datasets.seal(store, shards)                  # all are there: now the tree object, which is the commit
    files = datasets.open_tree(store, sealed.md5)          # names, and local files of their content

No byte of a shard passes through the driver. What `seal` writes is what DVC itself would: `dvc pull` and `dvc get` work
on it. Leaves first, the tree last, for a tree in the remote makes DVC believe that all its leaves are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.objects import FolderObjects, Objects, md5_of, objects
from infra.shard_cache import Damaged, ShardCache, StoreError, sound

if TYPE_CHECKING:
    from typing import Protocol

    from infra.settings import Settings

    class Stored(Protocol):
        """An object as a sink has it: `Shard`, or another sink's own."""

        @property
        def name(self) -> str: ...

        @property
        def digest(self) -> str: ...

        @property
        def size(self) -> int: ...


SEALED = "sealed.json"  # in the work folder of a stage whose output stays in the store
_FEW = 2000  # leaves that are looked for on S3; of more, the tree object must do
_LOST = "; `tessera data verify` says which runs and models need it, `tessera data repair` mends what it can"


@dataclass(frozen=True, slots=True)
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
    """Where the data of a project are (`url`: a folder or s3://), and the cache through which they are read here.

    Satisfies `components.interfaces.Sink`; picklable, for it holds no connection."""

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
        wanted = set(digests)
        return wanted - self.objects.sizes(wanted).keys()

    def fetch(self, digest: str) -> Path:
        """A local file with this content: the object itself where the store is a folder, else a copy in the cache. Checked
        against its hash once a process. Raises StoreError."""
        try:
            if isinstance(self.objects, FolderObjects):
                own = self.objects.local(digest)
                if own is None:
                    raise FileNotFoundError(digest)
                if not sound(own, digest):
                    raise Damaged(f"the object {digest} is damaged")
                return own
            return ShardCache(self.cache, self.cache_bytes).take(
                digest, lambda target: self.objects.download(digest, target)
            )
        except FileNotFoundError as error:
            raise StoreError(f"{self.url} has lost the object {digest}{_LOST}") from error
        except Damaged as error:
            raise Damaged(f"{self.url}: {error}{_LOST}") from error


def store(settings: Settings, url: str = "") -> Store:
    """The project's store."""
    place = url or settings.remote
    if "://" not in place:
        place = str((settings.project / place).resolve())
    return Store(place, settings.home / "shards", settings.shard_cache_mb << 20)


# ---------------------------------------------------------------------------------------------------------- trees


def seal(place: Store, shards: Iterable[Stored]) -> Sealed:
    """Writes the tree object over objects that were put. Raises StoreError when one is not there as it was put, or two of
    one name differ."""
    return _write(place, _named(shards))


def append(place: Store, base: str, shards: Sequence[Stored]) -> Sealed:
    """A new version of a data set: the tree `base` with shards added or replaced. Nothing old is downloaded but its tree."""
    return _write(place, {**tree(place, base), **_named(shards)})


def _named(shards: Iterable[Stored]) -> dict[str, Stored]:
    named: dict[str, Stored] = {}
    for shard in shards:
        before = named.setdefault(shard.name, shard)
        if before.digest != shard.digest:
            raise StoreError(
                f"two different objects want to be {shard.name}: {before.digest} and {shard.digest}; what makes them must "
                "make the same bytes each time"
            )
    return named


def _write(place: Store, named: Mapping[str, Stored | str]) -> Sealed:
    """The tree of names and what is there: shards with a known size, or the digests of an older version."""
    entries = {name: shard if isinstance(shard, str) else shard.digest for name, shard in named.items()}
    sizes = place.objects.sizes(set(entries.values()))
    lost = [
        name
        for name, shard in named.items()
        if entries[name] not in sizes or (not isinstance(shard, str) and sizes[shard.digest] != shard.size)
    ]
    if lost:
        raise StoreError(
            f"{len(lost)} objects are not whole in {place.url}, e.g. {lost[0]}; run the same command again"
        )
    data = tree_bytes(entries)
    digest = tree_digest(data)
    place.objects.put(digest, data)
    return Sealed(digest, len(entries), sum(sizes[entry] for entry in entries.values()))


def tree_bytes(entries: Mapping[str, str]) -> bytes:
    """A directory object as DVC writes it."""
    text = bytearray(b"[")  # a row at a time: there may be a hundred thousand
    for name in sorted(entries):
        text += b", " if len(text) > 1 else b""
        text += json.dumps({"md5": entries[name], "relpath": name}).encode()
    text += b"]"
    return bytes(text)


def tree_digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest() + ".dir"


def entries_of(digest: str, data: bytes) -> dict[str, str] | None:
    """name -> MD5 of the files that a tree object lists; None where its bytes are not those of its name."""
    if tree_digest(data) != digest:
        return None
    return {row["relpath"]: row["md5"] for row in json.loads(data)}


def tree(place: Store, digest: str) -> dict[str, str]:
    """name -> MD5 of the files of a tree. Raises StoreError."""
    try:
        entries = entries_of(digest, place.objects.get(digest))
    except FileNotFoundError as error:
        raise StoreError(f"{place.url} has lost the data set {digest}; run the stage that makes it again") from error
    if entries is None:
        raise Damaged(f"{place.url}: the list of files of the data set {digest} is damaged{_LOST}")
    return entries


def whole(place: Store, digest: str) -> bool:
    """Whether a tree and its leaves are in the store. Of more than 2,000 leaves on S3 only the tree is looked for, which
    is written last; `tessera data verify` looks for all."""
    try:
        entries = tree(place, digest)
    except StoreError:
        return False
    if len(entries) > _FEW and not isinstance(place.objects, FolderObjects):
        return True
    return not place.missing(entries.values())


@dataclass(frozen=True)
class StoreFiles:
    """A tree of the store as `components.interfaces.Files`. `entries`: name -> MD5."""

    place: Store
    md5: str
    entries: Mapping[str, str]

    def names(self) -> list[str]:
        return sorted(self.entries)

    def path(self, name: str) -> Path:
        if name not in self.entries:
            raise FileNotFoundError(f"the data set {self.md5} has no {name}")
        try:
            return self.place.fetch(self.entries[name])
        except StoreError as error:
            raise type(error)(f"{name} of the data set {self.md5}: {error}") from error


def open_tree(place: Store, digest: str) -> StoreFiles:
    """A data set of the store. Raises StoreError."""
    return StoreFiles(place, digest, tree(place, digest))


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
    """The committed output of a stage as it is in the store; None where the stage has none there.

    Without its note - in a clone of the run - what `dvc.lock` names, if the store has it."""
    place = of_run(run, settings)
    if found := sealed(run, stage):
        return open_tree(place, found.md5)
    committed = _locked(run, stage)
    return open_tree(place, committed) if committed and not place.missing([committed]) else None


def materialize(run: Path, stage: str, settings: Settings, digest: str = "") -> Path:
    """Puts the output of a stage that is in the store (`digest`: another tree than the one noted) into the run's folder in
    place of what is there: all of it or nothing. DVC finds it unchanged, for its cache gets it, too. Raises StoreError."""
    found = open_tree(of_run(run, settings), digest) if digest else files(run, stage, settings)
    if found is None:
        raise StoreError(f"run '{run.name}' has no {stage} in the store")
    target = run / "outputs" / stage
    fresh, old = run / "work" / stage / "fetched", target.with_name(f".{target.name}.old")
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        cache = FolderObjects(settings.home / "cache")
        for name in found.names():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.path(name), path)
            cache.put_file(found.entries[name], path)
        cache.put(found.md5, tree_bytes(found.entries))
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, old)
        os.replace(fresh, target)
    finally:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
    (run / "work" / stage / SEALED).unlink(missing_ok=True)
    return target


def _locked(run: Path, stage: str) -> str | None:
    """The tree that `dvc.lock` names as the output of a stage."""
    from ruamel.yaml import YAML

    lock = YAML(typ="safe").load(run / "dvc.lock") if (run / "dvc.lock").is_file() else None
    outs = (lock or {}).get("stages", {}).get(stage, {}).get("outs", [])
    return next((o["md5"] for o in outs if o["path"] == f"outputs/{stage}" and o["md5"].endswith(".dir")), None)
