"""What the commands that only look print: runs, comparisons, logs, services, lineage, promotions."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from components import yamlio
from flows import runs
from flows.terminal import console, number, table
from infra.settings import Settings

if TYPE_CHECKING:
    from flows.promotion import Decision

#: the figures of an evaluation that a list of runs has room for
_SHOWN = ("psnr", "codebook_usage", "fd_judge", "class_accuracy")


class ViewError(ValueError):
    """Something that was asked for cannot be shown; the message says why."""

    user_error = True


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def list_runs(settings: Settings, as_json: bool) -> None:
    """Every run: how far it is, when something last happened, and how well it does."""
    found: list[dict[str, Any]] = []
    for run in runs.all_runs(settings.project):
        stages = runs.stage_list(run)
        done = [name for name in stages if (run / "metrics" / f"{name}.json").is_file()]
        changed = max((run / "metrics" / f"{name}.json").stat().st_mtime for name in done) if done else None
        evaluation = runs.metrics(run, "evaluation")
        found.append(
            {
                "run": run.name,
                "stages": len(stages),
                "done": len(done),
                "last": changed and datetime.fromtimestamp(changed).isoformat(timespec="minutes", sep=" "),
                "metrics": {name: evaluation[name] for name in _SHOWN if name in evaluation},
            }
        )
    if as_json:
        _print_json(found)
    elif not found:
        console.print("no runs yet; start one with `tessera run quickstart`")
    else:
        rows = [
            [r["run"], f"{r['done']}/{r['stages']}", r["last"], *(_figure(r["metrics"].get(name)) for name in _SHOWN)]
            for r in found
        ]
        table("", ["run", "stages", "last", *_SHOWN], rows)


def _figure(value: float | None) -> str:
    return "" if value is None else number(value)


def compare(folders: Sequence[Path]) -> None:
    """Metrics side by side, then every setting in which the runs differ."""
    names = [folder.name for folder in folders]
    measured = [runs.all_metrics(run) for run in folders]
    shown = dict.fromkeys(name for run in measured for name in run)
    table("metrics", ["", *names], [[name, *(_figure(run.get(name)) for run in measured)] for name in shown])
    settings = [_flat({k: v for k, v in yamlio.load(run / "recipe.yaml").items() if k != "code"}) for run in folders]
    differing = [
        [key, *(run.get(key, "") for run in settings)]
        for key in dict.fromkeys(key for run in settings for key in run)
        if len({run.get(key) for run in settings}) > 1
    ]
    if differing:
        table("\nsettings that differ", ["", *names], differing)
    else:
        console.print("\nthe recipes are the same")


def _flat(recipe: Mapping[str, Any]) -> dict[str, str]:
    from infra.tracking import flatten

    return dict(flatten(recipe))


def logs(run: Path, follow: bool) -> None:
    """What the stages' workers printed, in the order of the stages; then, if asked, every new line until interrupted."""
    positions: dict[str, int] = {}

    def show() -> bool:
        found = False
        for stage in runs.stage_list(run):
            path = run / "work" / stage / "worker.log"
            start = positions.get(stage, 0)
            if not path.is_file() or path.stat().st_size == start:
                continue
            with open(path, "rb") as file:
                file.seek(start if start < path.stat().st_size else 0)  # it was begun anew
                text = file.read()
                positions[stage] = file.tell()
            console.print(f"[bold]{stage}[/]")
            console.print(escape(text.decode(errors="replace").rstrip("\n")), soft_wrap=True)
            found = True
        return found

    if not show() and not follow:
        console.print("the stages of this run printed nothing")
    while follow:
        time.sleep(0.5)
        show()


def remove(settings: Settings, folders: Sequence[Path], yes: bool) -> None:
    """Removes runs and the data that only they use; refuses what a champion came from."""
    from infra import cleanup

    if not yes:
        import typer

        typer.confirm(f"remove {', '.join(folder.name for folder in folders)} and the data only they use?", abort=True)
    freed = cleanup.remove(settings, list(folders))
    console.print(f"removed {len(folders)} runs; {freed / 2**20:.1f} MB are free again")


def accept(settings: Settings, run: Path) -> None:
    """Stamps the outputs of a run with the present code; refuses where anything but code has changed."""
    from flows import code
    from flows.walk import opened
    from infra.compute import Compute
    from infra.storage import write_bytes_atomic

    recipe = yamlio.load(run / "recipe.yaml")
    stages = runs.stage_list(run)
    fresh = code.of_recipe(settings.project, recipe, stages)
    with opened(run, settings, Compute(mode="inline")) as walk:
        for node in walk.graph.stages:
            other = {what: how for what, how in node.why().items() if not what.startswith("code.")}
            if other:
                what, how = next(iter(other.items()))
                raise ViewError(f"{run.name}: {node.name} has to run, whatever its code: {what} {how}")
    head = (run / "recipe.yaml").read_text().partition("\n")[0]
    write_bytes_atomic(run / "recipe.yaml", (head + "\n" + yamlio.dump(recipe | {"code": fresh})).encode())
    with opened(run, settings, Compute(mode="inline"), keep=frozenset(stages)) as walk:
        kept = [node.name for node in walk.graph.stages if walk.step(node.name).state == "kept"]
        walk.finish()
    console.print(f"accepted: {', '.join(kept)}" if kept else "nothing to accept: the code is the same")


def open_report(settings: Settings, run: Path, browser: bool) -> None:
    """Shows the page of a run, made first where it is missing."""
    from flows import report

    path = run / "report.html"
    if not path.is_file():
        if not any((run / "outputs").glob("*")):
            raise ViewError(f"run '{run.name}' has nothing to report yet: no stage has ended")
        report.write(run, None)
    console.print(str(path), soft_wrap=True)
    if browser:
        import webbrowser

        webbrowser.open(path.as_uri())


def status(settings: Settings, as_json: bool) -> None:
    """The services of this project."""
    from infra import services

    found = services.status(settings)
    if as_json:
        _print_json([dataclasses.asdict(entry) for entry in found])
    elif not found:
        console.print("nothing is running; `tessera up` starts Prefect, MLflow, Ray and the worker")
    else:
        rows = [[s.name, s.state, s.address.removesuffix("/api"), s.pid, s.restarts, s.detail] for s in found]
        table("", ["service", "state", "address", "pid", "restarts", ""], rows)


def lineage(settings: Settings, what: str, as_json: bool) -> None:
    """Where a run or model version came from."""
    from infra import lineage as events

    if what.startswith("models:/"):
        found = events.of_version(what, settings)
    else:
        found = events.tree(runs.find(settings.project, what), settings)
    if as_json:
        _print_json(found)
    else:
        console.print(escape(events.render(found)), soft_wrap=True)


def decision(made: Decision) -> None:
    """What became of a candidate, gate by gate; exit code 1 where it was refused."""
    if made.verdicts:
        rows = [
            [v.gate, number(v.value), _figure(v.bound), _figure(v.slack), "passed" if v.passed else "failed", v.note]
            for v in made.verdicts
        ]
        table("", ["gate", "value", "bound", "slack", "verdict", ""], rows)
    console.print(made.text, soft_wrap=True)
    if not made.promoted and made.champion != made.version:
        import typer

        raise typer.Exit(1)


def history(settings: Settings, model: str, on: str | None, as_json: bool) -> None:
    """Every promotion of a model; with a day, up to its end (UTC)."""
    from infra import ledger

    try:
        day = date.fromisoformat(on) if on else None
    except ValueError as error:
        raise ViewError(f"'{on}' is not a day; write it as 2026-05-03") from error
    records = ledger.history(settings, model, day)
    if as_json:
        _print_json(records)
        return
    if not records:
        console.print(f"{model} has no promotion" + (f" up to {on}" if on else ""))
        return
    rows = [
        [r["number"], r["when"][:19].replace("T", " "), r["action"], f"{r['from'] or '-'} -> {r['to']}", r["who"],
         r["why"], f"{sum(g['passed'] for g in r['gates'])}/{len(r['gates'])}" if r["gates"] else "", r["run"],
         r["commit"][:8] + ("+" if r["commit"].endswith("+") else ""), r["data"][:12]]
        for r in records
    ]  # fmt: skip
    table("", ["", "when (UTC)", "what", "version", "who", "why", "gates", "run", "code", "data"], rows)
    if on:
        console.print(f"champion at the end of {on}: version {records[-1]['to']}")
