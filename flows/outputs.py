"""The outputs of a run's stages as files, wherever their bytes are: in the run's folder, or in the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from components.data.files import Folder

if TYPE_CHECKING:
    from components.interfaces import Files


class OutputError(RuntimeError):
    """An output that is neither here nor in the store."""

    user_error = True


def files(run: Path, stage: str) -> Files:
    """The committed output of a stage. Raises OutputError."""
    local = run / "outputs" / stage
    if local.is_dir():
        return Folder(local)
    from infra import datasets
    from infra.settings import Settings

    os.environ.setdefault("TESSERA_PROJECT", str(run.parent.parent))
    found = datasets.files(run, stage, Settings())
    if found is None:
        raise OutputError(f"run '{run.name}' has no {stage} yet; `tessera run` makes it")
    return found


def present(run: Path, stage: str) -> bool:
    """Whether a stage has an output that can be looked at."""
    return (run / "outputs" / stage).is_dir() or (run / "work" / stage / "sealed.json").is_file()


def figures(run: Path, stage: str) -> dict[str, Path]:
    """The pictures that a stage has left for people, by name."""
    return _shown(run, stage, "figures/", ".png")


def tables(run: Path, stage: str) -> dict[str, Path]:
    """The tables (JSON, a list of rows) that a stage has left for people, by name."""
    return _shown(run, stage, "tables/", ".json")


def _shown(run: Path, stage: str, folder: str, suffix: str) -> dict[str, Path]:
    if not present(run, stage):
        return {}
    found = files(run, stage)
    names = [name for name in found.names() if name.startswith(folder) and name.endswith(suffix)]
    return {name.removeprefix(folder).removesuffix(suffix): found.path(name) for name in names}
