"""`tessera run`: decides what there is to do first, and starts servers only if there is something.

nothing stale        -> says so; neither Prefect nor Ray nor torch is imported
--inline or --data   -> the bodies run in this process, no server
otherwise            -> services (attached to if they run), then the `pipeline` flow in this process
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from flows import plan, recipes, runs
from flows.terminal import Board, console, number
from infra import full_disk
from infra.settings import Settings


@dataclass(frozen=True)
class Options:
    until: str | None
    force: frozenset[str]
    keep: frozenset[str]
    compute: int
    inline: bool


@full_disk.explained()
def execute(
    settings: Settings,
    recipe: str,
    scale: str | None,
    overrides: list[str],
    name: str,
    data: str | None,
    options: Options,
) -> None:
    """Brings one run up to date and shows how it went. Raises DiskFull, RecipeError, and what a stage raises."""
    started = time.monotonic()
    with _early(settings, recipe, scale, overrides, name) if not options.inline else nullcontext():
        run = plan.prepare(settings, recipe, scale, overrides, name, data)
    stages = runs.stage_list(run)
    for asked in [*options.force, *options.keep, *([options.until] if options.until else [])]:
        if asked not in stages:
            raise recipes.RecipeError(f"run '{run.name}' has no stage '{asked}' (it has: {', '.join(stages)})")
    console.print(f"[bold]{run.name}[/]  {run}", soft_wrap=True)
    todo = [p for p in plan.plan(run, settings, options.force) if p.state != "cached"]
    wanted = stages[: stages.index(options.until) + 1] if options.until else stages
    if not any(p.stage in wanted for p in todo) and plan.published(run, settings, wanted):
        with Board() as board:
            for stage in wanted:
                board.watch(stage, {"state": "cached", "metrics": runs.metrics(run, stage)})
        console.print(f"everything is up to date ({time.monotonic() - started:.1f} s)")
        return
    if options.inline:
        _inline(settings, run, wanted, options)
    else:
        _flow(settings, run, recipe, scale, overrides, options, wanted)
    _summary(settings, run, wanted, started)


@contextmanager
def _early(settings: Settings, recipe: str, scale: str | None, overrides: list[str], name: str) -> Iterator[None]:
    """Where Ray runs already and the recipe is a new one, its worker starts while the recipe is resolved here."""
    from infra import services

    if recipes.is_resolved(settings.project, recipe, scale, overrides) or not services.addresses(settings).ray:
        yield
        return
    from infra import compute

    run = runs.run_name(recipe, scale, overrides, given=name or None)
    compute.warm(run, settings)
    try:
        yield
    except Exception:
        compute.release(run, settings)
        raise


def _inline(settings: Settings, run: Path, wanted: list[str], options: Options) -> None:
    from flows.walk import opened
    from infra.compute import Compute

    with (
        Board() as board,
        opened(
            run, settings, Compute(mode="inline"), force=options.force, keep=options.keep, watch=board.watch
        ) as walk,
    ):
        for stage in wanted:
            walk.step(stage)
        walk.finish()


def _flow(
    settings: Settings,
    run: Path,
    recipe: str,
    scale: str | None,
    overrides: list[str],
    options: Options,
    wanted: list[str],
) -> None:
    from infra import compute, services

    with services.lease(settings):
        with console.status("starting Prefect and Ray"):
            addresses = services.ensure(settings, {"prefect", "ray"})
        os.environ["PREFECT_API_URL"] = str(addresses.prefect)
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
        # errors are shown by the command line, in words; their traces are in Prefect
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        compute.warm(run.name, settings)  # its imports and ours side by side
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        from flows.pipeline import pipeline, watcher
        from flows.request import Request

        # nobody waits for a sign of life of a command that he watches, but its end would wait for the sender's second
        with Board() as board, temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            watcher.set(board.watch)
            request = Request(
                recipe=recipe,
                scale=scale or "tiny",
                overrides=overrides,
                name=run.name,
                until=options.until or "registration",
                force=sorted(options.force),
                keep=sorted(options.keep),
                workers=options.compute,
            )
            pipeline(request)


def _summary(settings: Settings, run: Path, wanted: list[str], started: float) -> None:
    last = runs.metrics(run, "evaluation") if "evaluation" in wanted else runs.metrics(run, wanted[-1])
    for metric, value in runs.main_figures(last).items():
        console.print(f"  {metric:<28} {number(value)}")
    console.print(f"done in {time.monotonic() - started:.0f} s")
    if (run / "report.html").is_file():
        console.print(f"report   {run / 'report.html'}  (tessera report {run.name})", soft_wrap=True)
    picture = run / "outputs" / "evaluation" / "figures" / "reconstructions.png"
    if picture.is_file():
        console.print(f"pictures {picture.parent}", soft_wrap=True)
