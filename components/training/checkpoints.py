"""Checkpoints of a training: folders `step-<n>` with `state.safetensors` and `state.json`, complete or not there.

1. A checkpoint is written under a temporary name, synced to disk, and renamed; two are kept.
2. `state.json` holds numbers and the digest of the tensors, and a digest of itself.
3. Reading takes the newest one whose digests hold; a torn or changed one is passed over for the one before.

Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
KEEP = 2


@dataclass
class State:
    """`step` optimizer steps are done, of a training planned for `steps`; `numbers` are counters and last metrics."""

    step: int
    steps: int
    tensors: dict[str, Tensor]
    numbers: dict[str, float] = field(default_factory=dict)


def save(folder: Path, state: State) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:09d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()}
    save_file(tensors, temporary / "state.safetensors")
    about = {"format": FORMAT, "step": state.step, "steps": state.steps, "numbers": state.numbers}
    about["tensors"] = _digest((temporary / "state.safetensors").read_bytes())
    about["digest"] = _digest(_canonical(about))
    (temporary / "state.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if target.exists():  # a damaged one, otherwise training would have continued from it
        shutil.rmtree(target)
    os.replace(temporary, target)
    _sync(folder)
    for old in _newest_first(folder)[KEEP:]:
        shutil.rmtree(old)
    return target


def newest(folder: Path, steps: int) -> State | None:
    """The newest whole checkpoint of a training planned for at most `steps`: of a longer one the learning rate was
    another, so it is no beginning of this one."""
    for path in _newest_first(folder):
        state = _read(path)
        if state is not None and state.steps <= steps:
            return state
    return None


def _read(path: Path) -> State | None:
    """The checkpoint, or None when it is not what was written."""
    try:
        about = json.loads((path / "state.json").read_text())
        digest = about.pop("digest")
        data = (path / "state.safetensors").read_bytes()
        if about["format"] != FORMAT or digest != _digest(_canonical(about)) or about["tensors"] != _digest(data):
            return None
        tensors = load_file(path / "state.safetensors")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return State(about["step"], about["steps"], tensors, about["numbers"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


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
