"""What a stage body receives: its resolved recipe sections, its inputs, and where results and reports go.

A body is `body(ctx: StageContext) -> dict[str, float]`; it writes files under `ctx.output` and returns plain metrics.
It never touches Prefect or MLflow. Everything it reports goes through files of the attempt folder `ctx.work`, so that
whoever follows the work (this process, another one, one started later) reads the same:

    work/<stage>/progress.json      the latest progress, replaced atomically
    work/<stage>/metrics.jsonl      step metrics, one JSON object a line
    work/<stage>/checkpoints/       of the trainer
    work/<stage>/figures/           pictures for the report, copied into the output
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from components.interfaces import Files, Sink, Stored
    from components.training.placement import Placement
    from infra.datasets import Store

A = TypeVar("A")
B = TypeVar("B")


class StageFailed(Exception):
    """A stage cannot go on for a reason the user must mend; shown as a message, never as a traceback."""


@dataclass
class StageContext:
    """Satisfies `components.interfaces.Monitor`."""

    run: Path  # runs/<run>
    stage: str
    recipe: dict[str, Any]  # the resolved recipe
    output: Path  # fresh folder; it becomes runs/<run>/outputs/<stage> when the body has ended
    work: Path  # survives interruptions; checkpoints live here
    store: Store | None = None  # where shards go straight away; None: into `output`
    how: dict[str, Any] = field(default_factory=dict)  # how trainings compute here; no part of the recipe
    sealed: list[Stored] = field(default_factory=list)  # what of this output is in the store
    _started: float = field(default_factory=time.monotonic)

    def section(self, name: str) -> Any:
        return self.recipe[name]

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])

    def input(self, stage: str) -> Path:
        """The committed output folder of an earlier stage."""
        return self.run / "outputs" / stage

    def files(self, stage: str) -> Files:
        """The committed output of an earlier stage, wherever its bytes are: for data of any size."""
        from flows import outputs

        return outputs.files(self.run, stage)

    @property
    def sink(self) -> Sink:
        """Where shards are put; picklable. What was put belongs to the output once it is named to `keep`."""
        from components.data.files import Folder

        return self.store or Folder(self.output)

    def keep(self, stored: Sequence[Stored]) -> None:
        """Makes objects that were put into the sink part of this output."""
        if self.store is not None:
            self.sealed += stored

    def written(self) -> Files:
        """This output as it is so far, with what was named to `keep`."""
        return _Written(self)

    def each(self, function: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B]]:
        """Independent work side by side, (index, result) as they end; `function` is a picklable one of a module."""
        from infra import parallel

        return parallel.each(function, items)

    def map(self, function: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """The same in the order of the items (`components.interfaces.Map`)."""
        from infra import parallel

        return parallel.ordered(function, items)

    def has(self, stage: str) -> bool:
        """Whether this run has that stage (a null section has none)."""
        return self.recipe.get(stage) is not None

    @property
    def placement(self) -> Placement:
        from components.training.placement import Placement

        return Placement(**self.how)

    @property
    def checkpoints(self) -> Path:
        folder = self.work / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def progress(self, done: int, total: int, note: str = "") -> None:
        state = {"stage": self.stage, "done": done, "total": total, "note": note, "time": time.time()}
        temporary = self.work / f".progress.{os.getpid()}"
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self.work / "progress.json")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, "time": time.time(), **{k: float(v) for k, v in metrics.items()}}
        with open(self.work / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def figure(self, name: str, png: bytes) -> None:
        """A picture for the report and for the artifacts in the UI: `figures/<name>.png` of the output."""
        folder = self.output / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(png)

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """A table for the report and for the artifacts in the UI: `tables/<name>.json` of the output."""
        folder = self.output / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


@dataclass(frozen=True)
class _Written:
    """`components.interfaces.Files` of an output that is not committed yet."""

    ctx: StageContext

    def names(self) -> list[str]:
        from components.data.files import Folder

        return sorted({*(put.name for put in self.ctx.sealed), *Folder(self.ctx.output).names()})

    def path(self, name: str) -> Path:
        own = self.ctx.output / name
        if own.is_file() or self.ctx.store is None:
            return own
        digest = next((put.digest for put in self.ctx.sealed if put.name == name), None)
        if digest is None:
            raise FileNotFoundError(f"{self.ctx.stage} has not written {name}")
        return self.ctx.store.fetch(digest)
