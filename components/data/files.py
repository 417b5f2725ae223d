"""Files of a data set in a folder: the plain `Files` and `Sink`, for what is here and for tests."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.interfaces import Files


@dataclass(frozen=True)
class Put:
    """What a sink says of an object it has."""

    name: str
    digest: str
    size: int


@dataclass(frozen=True)
class Folder:
    """A folder as `Files` and as `Sink`; each file is there whole or not at all."""

    root: Path

    def names(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def path(self, name: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(f"{self.root} holds no {name}")
        return path

    def put(self, name: str, data: bytes) -> Put:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(data)
        os.replace(temporary, path)
        return Put(name, hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data))


def files_of(place: Files | Path) -> Files:
    """A folder's path as `Files`; anything else as it is."""
    return Folder(place) if isinstance(place, Path) else place
