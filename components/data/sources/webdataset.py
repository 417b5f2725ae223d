"""WebDataset: tar files whose neighbours of one name are a sample: `000017.jpg`, `000017.txt`, `000017.cls`.

    shards/flowers-000.tar    000000.jpg  a picture (png, webp, ...)     000000.wav  a sound (flac, ogg, ...)
    shards/flowers-001.tar    000000.txt  its caption, or the text       000000.npy  an array
    ...                       000000.cls  its label                      000000.json {"label": ..., "caption": ...}

Mechanism: 1. a tar is a part, read from its beginning to its end in one go (`.tar`, `.tar.gz`, `.tgz`); 2. the name up to
the first dot is the sample, the last ending says what a file is; 3. `modalities` says what is read: `.txt` is the text
where texts are read, a caption otherwise; other files are passed over; 4. a tar without its end mark was cut off: the
samples before are yielded, then one `Broken` says so. The key is the tar and the name: `flowers-000.tar/000017`.
Absent on purpose: unpacking to disk, and endings that would have to be unpickled.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Annotated, Any

from pydantic import Field

from components.data import locations
from components.data.sources import _parts
from components.data.sources._checked import checked, plain
from components.data.sources._text import NotText, to_text
from components.interfaces import Broken, Modality, Part, Sample, Source

_ENDINGS = (".tar", ".tar.gz", ".tgz")
_KINDS: dict[str, str] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "opus", "mp3"), "audio"),
    "txt": "text",
    "npy": "array",
    "cls": "label",
    "json": "json",
}


class Webdataset(Source):
    """Tars of a folder, one tar, or a URL such as `s3://bucket/shards`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with tarfile.open(f"{folder}/x.tar", "w") as tar: tar.add(__file__, "0001.txt")
    ...     [sample.key for sample in Webdataset(path=folder, modalities=("text",)).samples()]
    ['x.tar/0001']
    """

    def __init__(
        self, *, path: str, modalities: Annotated[tuple[Modality, ...], Field(min_length=1)] = ("image",)
    ) -> None:
        self.path, self.modalities = path, modalities

    def parts(self) -> Sequence[Part]:
        found = _parts.of_kind(self.path, locations.listing(self.path, "tars"), _ENDINGS, "tars")
        return [Part((entry.name,)) for entry in found]

    def read(self, part: Part) -> Iterator[Sample | Broken]:
        for name in part.files:
            key = _parts.key_of(self.path, name)
            try:
                with locations.open(self.path, name) as file:
                    yield from self._tar(key, file)
            except OSError as error:
                yield Broken(key, locations.why(error))

    def _tar(self, tar: str, file: IO[bytes]) -> Iterator[Sample | Broken]:
        used: Counter[str] = Counter()
        try:
            for group in _groups(file):
                used[group.name] += 1
                again = used[group.name] > 1
                key = f"{tar}/{group.name}" + (f"#{used[group.name]}" if again else "")
                if group.reason:
                    yield Broken(key, group.reason)
                elif again:
                    yield Broken(key, "a second sample of this name; the files of a sample follow each other")
                else:
                    yield _sample(key, group.files, self.modalities)
        except _Cut as error:
            yield Broken(tar, str(error))
            return
        if not used:
            yield Broken(tar, "the tar holds no samples")


@dataclass
class _Group:
    """Files of one sample by their endings, or a file that cannot be part of one."""

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    reason: str | None = None


class _Cut(Exception):
    """A tar that ends before its end."""


def _groups(file: IO[bytes]) -> Iterator[_Group]:
    group: _Group | None = None
    done = 0
    try:
        for name, data in _members(file):
            stem, ending = _split(name)
            if isinstance(data, str):
                yield _Group(name, reason=data)
                continue
            if group and (stem != group.name or ending in group.files):
                yield group
                group, done = None, done + 1
            group = group or _Group(stem)
            group.files[ending] = data
    except tarfile.TarError as error:
        begun = f"; of '{group.name}', the next one, something may be missing" if group else ""
        raise _Cut(f"damaged: {error} (samples before it: {done}{begun})") from error
    if group:
        yield group


class _Header(tarfile.TarInfo):
    """Notes how a tar ended: `tarfile` takes one that was cut between two files for a whole one."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile)
        except _HEADER_ERROR as error:
            tarfile.ending = error  # type: ignore[attr-defined]
            raise


_HEADER_ERROR = tarfile.HeaderError


class _Tar(tarfile.TarFile):
    tarinfo = _Header
    ending: Exception | None = None


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes | str]]:
    """(name, content) of each file, or what is wrong with it; raises tarfile.TarError where the tar is cut off."""
    if not file.read(1):
        raise tarfile.ReadError("the file is empty")
    file.seek(0)
    with _Tar.open(fileobj=file, mode="r|*") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or it keeps the headers of all
            raw = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            name = str(PurePosixPath(raw))
            if member.isdir() or any(part.startswith(".") and part != ".." for part in name.split("/")):
                continue
            if name.startswith("/") or ".." in name.split("/"):
                yield name, "its name leads out of the tar"
            elif not member.isreg():
                yield name, "a link or device, not a file"
            elif "." not in name.rpartition("/")[2]:
                yield name, "its name has no ending that says what it is"
            else:
                yield name, tar.extractfile(member).read()  # type: ignore[union-attr]
        if isinstance(tar.ending, tarfile.InvalidHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(tar.ending))
        if not isinstance(tar.ending, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError("the mark at its end is missing")


def _split(name: str) -> tuple[str, str]:
    """`a/b.left.jpg` -> (`a/b`, `left.jpg`)"""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _sample(key: str, files: Mapping[str, bytes], modalities: Sequence[Modality]) -> Sample | Broken:
    content: dict[str, Any] = {}
    about: dict[str, Any] = {}
    for ending, data in files.items():
        kind = _KINDS.get(ending.rpartition(".")[2], "")
        try:
            if kind == "json":
                row = json.loads(to_text(data))
                if not isinstance(row, dict):
                    return Broken(key, f".{ending}: expected an object, found {type(row).__name__}")
                about = row | about
            elif kind == "label":
                about["label"] = to_text(data).strip() if data else None  # an empty one says nothing
            elif kind == "text" and "text" in modalities:
                content["text"] = to_text(data)
            elif kind == "text":
                about["caption"] = to_text(data).strip() if data else None
            elif kind in modalities and kind in content:
                return Broken(key, f"two files for {kind}: {', '.join(files)}")
            elif kind in modalities:
                content[kind] = data
        except (NotText, ValueError, RecursionError) as error:
            return Broken(key, f".{ending}: {error}")
    if "text" in modalities and isinstance(about.get("text"), str):
        content.setdefault("text", about["text"])
    if not content:
        return Broken(key, f"it has no {' or '.join(modalities)}, but {', '.join(files)}")
    return checked(Sample(key, label=plain(about.get("label")), caption=plain(about.get("caption")), **content))
