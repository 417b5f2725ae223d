"""Removing runs: their folders, and of the shared cache and the local remote whatever no other run refers to.

A run refers to what its `dvc.lock` names and to what its lineage events name (a setting that is changed back takes those
outputs from the cache again). Registered model versions have copies of their own in MLflow's artifact store and stay.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from infra import compute, datasets, lineage, registry, supervisor
from infra.objects import place
from infra.settings import Settings


class CleanupError(RuntimeError):
    """Runs that must stay; the message says why."""

    user_error = True


def remove(settings: Settings, runs: list[Path]) -> int:
    """Removes the runs' folders and the data that only they use; returns the bytes that became free."""
    for run in runs:
        compute.cancel(run.name, settings)
        for model, version, alias in _promoted(settings, run.name):
            raise CleanupError(
                f"run '{run.name}' made version {version} of {model}, its {alias}; its lineage would be lost: promote "
                "another one first"
            )
    if supervisor.leased(settings.home):
        raise CleanupError(
            "another command of this project is at work and may need the data; try again when it has ended"
        )
    doomed = set(referred(settings, runs))
    for run in runs:
        gone = settings.home / "removed" / f"{run.name}-{time.time_ns()}"
        gone.parent.mkdir(exist_ok=True)
        run.rename(gone)  # at once or not at all
        shutil.rmtree(gone)
    others = [path for path in settings.runs.iterdir() if path.is_dir()] if settings.runs.is_dir() else []
    return sum(_delete(settings, digest) for digest in doomed - set(referred(settings, others)))


def _promoted(settings: Settings, run: str) -> Iterator[tuple[str, str, str]]:
    for model in registry.models(settings):
        for alias in ("champion", "previous"):
            version = registry.get_alias(settings, model, alias)
            if version and registry.tags(settings, model, version).get("tessera.run") == run:
                yield model, version, alias


def referred(settings: Settings, runs: Iterable[Path]) -> Iterator[str]:
    """Every object that these runs name: outputs, inputs, and the files of those that are folders."""
    store = datasets.store(settings)
    known: set[str] = set()
    for run in runs:
        for digest in lineage.digests(run):
            yield digest
            if digest.endswith(".dir") and digest not in known:
                known.add(digest)
                path = settings.home / "cache" / place(digest)
                if path.is_file():
                    yield from (entry["md5"] for entry in json.loads(path.read_text()))
                else:
                    with contextlib.suppress(datasets.StoreError):  # nowhere: then its files are nobody's
                        yield from datasets.tree(store, digest).values()


def _stores(settings: Settings) -> list[Path]:
    """The folders of objects that are this project's own: the cache, and the remote where it is a folder."""
    remote = datasets.store(settings).url
    local = [] if "://" in remote else [Path(remote)]
    return [root / "files" / "md5" for root in (settings.home / "cache", *local)]


def _delete(settings: Settings, digest: str) -> int:
    freed = 0
    for store in _stores(settings):
        path = store / digest[:2] / digest[2:]
        if path.is_file():
            freed += path.stat().st_size
            path.unlink()
    return freed
