"""Finished proxies on disk: one small file each, written atomically, found again by what was trained.

The name of a file is a hash of the problem, the mixture and the seed, so a search that was interrupted, or another
method on the same problem, reads what is there, and a changed problem never meets an old score.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.interfaces import Map

Score = Callable[[np.ndarray, int], float]  # (alpha [K], seed) -> score, higher is better
Run = tuple[np.ndarray, int]  # (alpha, seed)


@dataclass(frozen=True)
class Store:
    """`problem` identifies everything that a score depends on, apart from mixture and seed."""

    folder: Path
    problem: str

    def _path(self, run: Run) -> Path:
        alpha, seed = run
        text = f"{self.problem} {seed} ".encode() + np.ascontiguousarray(alpha, np.float64).tobytes()
        return self.folder / f"{hashlib.sha256(text).hexdigest()[:32]}.json"

    def read(self, run: Run) -> float | None:
        """The score of a finished proxy, or None."""
        try:
            return float(json.loads(self._path(run).read_text())["score"])
        except FileNotFoundError:
            return None

    def write(self, run: Run, score: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(run)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"alpha": run[0].tolist(), "score": score, "seed": run[1]}))
        os.replace(temporary, path)


@dataclass(frozen=True)
class Train:
    """Trains one proxy and keeps its score; picklable, so that it can go to a worker."""

    score: Score
    store: Store

    def __call__(self, run: Run) -> float:
        score = self.score(*run)
        self.store.write(run, score)
        return score


def trained(score: Score, store: Store, runs: Sequence[Run], map: Map) -> list[float]:
    """The score of every run, in order; those that are not in the store are trained, through `map`."""
    scores = [store.read(run) for run in runs]
    missing = [run for run, found in zip(runs, scores, strict=True) if found is None]
    new = iter(map(Train(score, store), missing))
    return [next(new) if found is None else found for found in scores]
