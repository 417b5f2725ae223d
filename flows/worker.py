"""Where a stage body runs: in this process, in a Ray worker, or as `tessera stage X` under `dvc repro`.

The output appears at once or not at all: the body writes into a fresh folder beside its checkpoints, and only when it
has ended does that folder take the place of `outputs/<stage>`. Metrics and plots are files of the same commit.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from components import yamlio
from flows.context import StageContext
from infra import datasets
from infra.settings import Settings
from infra.storage import write_bytes_atomic, write_json_atomic

#: step metrics that differ from one execution to the next; they are of no use in a versioned plot
_CLOCK = ("time", "samples_per_second", "tokens_per_second", "mfu", "memory_gb")


def context(run: Path, stage: str) -> StageContext:
    """The context of a stage of a run, with an empty output folder. Of several training processes each has its own; that of
    the first becomes the output."""
    work = run / "work" / stage
    output = work / ("output" if _rank() == 0 else f"output-of-rank-{_rank()}")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    recipe = yamlio.load(run / "recipe.yaml")
    settings = Settings()
    how = {name: getattr(settings, name) for name in ("micro_batch", "sharding", "recompute", "compiled")}
    return StageContext(run, stage, recipe, output, work, store=datasets.store(settings), how=how)


def run_stage(run: str, stage: str, whole: bool = False) -> dict[str, float]:
    """Runs one body and puts its outputs, metrics and plots in place; returns the metrics. A large output that went
    straight into the store stays there, unless `whole` asks for all of it here (as `dvc repro` does)."""
    folder = Path(run)
    ctx = context(folder, stage)
    body = importlib.import_module(f"flows.{stage}").body
    metrics = {name: float(value) for name, value in sorted(body(ctx).items())}
    if _rank() > 0:  # every process computes the same; the first one's is kept
        shutil.rmtree(ctx.output)
        return metrics
    _place(ctx, whole)
    write_json_atomic(folder / "metrics" / f"{stage}.json", metrics)
    if "plots" in yamlio.load(folder / "dvc.yaml")["stages"][stage]:
        write_bytes_atomic(folder / "plots" / f"{stage}.csv", as_csv(step_metrics(ctx.work)))
    return metrics


def _rank() -> int:
    """The place of this process among those that train together; 0 for one alone."""
    return int(os.environ.get("RANK", "0"))


def _place(ctx: StageContext, whole: bool) -> None:
    """The finished output where it belongs: into the run's folder, or sealed in the store and named by `sealed.json`."""
    target, note = ctx.run / "outputs" / ctx.stage, ctx.work / datasets.SEALED
    if not ctx.sealed:
        place(ctx.output, target)
        note.unlink(missing_ok=True)
        return
    settings = Settings()
    store = datasets.store(settings)
    own = [path for path in sorted(ctx.output.rglob("*")) if path.is_file()]
    put = [store.put_file(path.relative_to(ctx.output).as_posix(), path) for path in own]
    sealed = datasets.seal(store, [*ctx.sealed, *put])
    if whole or sealed.size <= settings.local_data_mb << 20:
        for shard in ctx.sealed:
            path = ctx.output / shard.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.fetch(shard.digest), path)
        place(ctx.output, target)
        note.unlink(missing_ok=True)
    else:
        write_json_atomic(note, {"md5": sealed.md5, "nfiles": sealed.nfiles, "size": sealed.size})
        for folder in (target, ctx.output):
            shutil.rmtree(folder, ignore_errors=True)


def place(fresh: Path, target: Path) -> None:
    """Puts a finished folder where an older one may be. A crash in between leaves no output, never a mixed one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(fresh, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(fresh, target)


def step_metrics(work: Path) -> list[dict[str, Any]]:
    """The step metrics of a training, one row a step; where an interrupted step was done again, the later row holds."""
    path = work / "metrics.jsonl"
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed worker
            continue
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    names = sorted({name for row in rows for name in row if name.rpartition(".")[2] not in ("step", *_CLOCK)}) or [
        "loss"
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *names], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
