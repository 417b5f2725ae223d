"""Checkpoints of a training: folders `step-<n>` with `state.json` and a `state-<rank>.safetensors` of each process that has
something of its own, complete or not there.

1. What all processes have alike is written by the first one; of a tensor that is spread over them (FSDP2: rows, in the order
   of ranks) each writes its rows. So no process ever holds the whole, and writing takes the time of one part.
2. A checkpoint is written under a temporary name and synced to disk by all, and renamed by the first; two are kept.
3. `state.json` holds numbers and the digest of each file, and a digest of itself. Reading takes the newest one whose digests
   hold; a torn or changed one is passed over for the one before.
4. Any number of processes can go on from it: each reads the rows that are its own now.

Nothing is pickled. The folder must be one that all processes see."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from components.training import distributed

FORMAT = 2
KEEP = 2


@dataclass
class State:
    """`step` optimizer steps are done, of a training planned for `steps`; `numbers` are counters and last metrics."""

    step: int
    steps: int
    tensors: Mapping[str, Tensor]
    numbers: dict[str, float] = field(default_factory=dict)


class Stored(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, read when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.parts: dict[str, list[tuple[Path, int]]] = {}  # name -> files with the rows they have of it, in order
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    shape = tuple(file.get_slice(name).get_shape())
                    before = self.shapes.get(name)
                    self.parts.setdefault(name, []).append((path, shape[0] if shape else 1))
                    self.shapes[name] = shape if before is None else (before[0] + shape[0], *shape[1:])

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        return self.rows(name, 0, shape[0]) if shape else self._read(self.parts[name][0][0], name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, of no file more than these."""
        found: list[Tensor] = []
        first = 0
        for path, count in self.parts[name]:
            here = slice(max(start - first, 0), min(stop - first, count))
            if here.start < here.stop or (start == stop and not found):
                found.append(self._read(path, name, slice(here.start, max(here.start, here.stop))))
            first += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def _read(self, path: Path, name: str, rows: slice | None) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]


def save(folder: Path, state: State) -> Path:
    """All processes take part; raises in all of them when one cannot write."""
    target = folder / f"step-{state.step:09d}"
    temporary = folder / distributed.from_first(f".{target.name}.{os.getpid()}")
    rank, first = distributed.rank(), distributed.rank() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    distributed.barrier()
    failed: OSError | None = None
    written: dict[str, str] = {}
    try:
        tensors = dict(_own(state.tensors, first))
        if tensors:
            path = temporary / f"state-{rank}.safetensors"
            save_file(tensors, path)
            _sync(path)
            written[path.name] = _file_digest(path)
    except OSError as error:
        failed = error
    everyone = distributed.of_all((written, failed is None))
    if failed is not None:
        raise failed
    if not all(well for _, well in everyone):
        raise OSError(f"another process could not write its part of {target}")
    if first:
        files = {name: digest for parts, _ in everyone for name, digest in parts.items()}
        about: dict[str, Any] = {"format": FORMAT, "step": state.step, "steps": state.steps, "numbers": state.numbers}
        about["files"] = files
        about["digest"] = _digest(_canonical(about))
        (temporary / "state.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
        for path in (temporary / "state.json", temporary):
            _sync(path)
        if target.exists():  # a damaged one, otherwise training would have continued from it
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(folder)
        for old in _newest_first(folder)[KEEP:]:
            shutil.rmtree(old)
    distributed.barrier()
    return target


def newest(folder: Path, steps: int) -> State | None:
    """The newest whole checkpoint of a training planned for at most `steps`: of a longer one the learning rate was
    another, so it is no beginning of this one. All processes take part; the first one checks the files."""
    found = None
    if distributed.rank() == 0:
        whole = (path for path in _newest_first(folder) if (about := _checked(path)) and about["steps"] <= steps)
        found = next(whole, None)
    found = distributed.from_first(found)
    if found is None:
        return None
    about = json.loads((found / "state.json").read_text())
    files = sorted((found / name for name in about["files"]), key=_rank)
    return State(about["step"], about["steps"], Stored(files), about["numbers"])


def _own(tensors: Mapping[str, Tensor], first: bool) -> Iterator[tuple[str, Tensor]]:
    """What this process writes, on the CPU."""
    for name, tensor in tensors.items():
        if hasattr(tensor, "to_local"):
            tensor = tensor.to_local()
            if not len(tensor):
                continue
        elif not first:
            continue
        yield name, tensor.detach().cpu().contiguous().clone()


def _checked(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says about itself, or None when it is not what was written."""
    try:
        about = json.loads((path / "state.json").read_text())
        digest = about.pop("digest")
        if about["format"] != FORMAT or digest != _digest(_canonical(about)):
            return None
        whole = all(_file_digest(path / name) == digest for name, digest in about["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return about if whole else None


def _rank(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(about: dict[str, object]) -> bytes:
    return json.dumps(about, sort_keys=True).encode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
