"""The pictures that lie in scikit-image's package: found without importing it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from components.data.locations import SourceError


def folder() -> Path | None:
    """Where they are; None where scikit-image is not installed."""
    found = find_spec("skimage")
    return Path(found.submodule_search_locations[0], "data") if found and found.submodule_search_locations else None


def file(name: str) -> Path:
    """One of them. Raises SourceError where it is not there."""
    place = folder()
    if place is None or not (place / name).is_file():
        raise SourceError(f"{name} comes with scikit-image; install it with: pip install scikit-image")
    return place / name
