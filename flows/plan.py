"""Before anything starts: the run's folder as the recipe wants it, and what would happen to each stage and why.

Imports neither torch nor Prefect nor Ray, so that a run with nothing to do answers at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from components import yamlio
from flows import initial, publish, recipes, runs
from infra import graph, records
from infra.settings import Settings


@dataclass(frozen=True)
class Planned:
    """`runs`: it will; `may run`: an earlier stage runs, and this one does too if that one's output changes; `cached`.

    `cost` is the body's time when a stage of this system last ran, in seconds; None if it never did."""

    stage: str
    state: Literal["runs", "may run", "cached"]
    why: dict[str, str]
    cost: float | None


def prepare(
    settings: Settings, recipe: str, scale: str | None, overrides: list[str], name: str = "", data: str | None = None
) -> Path:
    """Resolves the recipe and writes `runs/<run>/` (recipe, graph, DVC project); an existing run is brought up to date.

    `data` takes the place of the path of the recipe's source. Raises RecipeError for any mistake in recipe or name."""
    resolved = recipes.resolve(settings.project, recipe, scale, overrides)
    if data is not None:
        resolved = with_data(resolved, data)
    resolved = initial.with_weights(with_content(resolved, settings.project), settings.project)
    run_name = runs.run_name(recipe, scale, overrides, data, name or None)
    folder = runs.write(settings.project, run_name, resolved)
    graph.create(folder, settings)
    return folder


def with_data(recipe: dict[str, Any], data: str) -> dict[str, Any]:
    """The recipe with its source reading `data`; refused for a source that reads no path."""
    source = recipe["dataset"]["source"]
    if "path" not in source:
        raise recipes.RecipeError(
            f"--data is for recipes whose source reads a folder; '{recipe['system']}' has the source '{source['type']}'"
        )
    place = data if "://" in data else str(Path(data).resolve())
    return recipe | {"dataset": recipe["dataset"] | {"source": source | {"path": place}}}


def with_content(recipe: dict[str, Any], project: Path) -> dict[str, Any]:
    """The recipe with what its sources read from outside: full paths, and a digest of the names, sizes and times of the
    files there, so that the stage runs again when the person's files have changed."""
    from components.data import locations

    marks: list[str] = []

    def visit(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        found = {key: visit(inner) for key, inner in value.items()}
        path = found.get("path")
        if "type" not in found or not isinstance(path, str):
            return found
        if not locations.is_url(path):
            path = str(project / Path(path).expanduser())
        marks.append(locations.fingerprint(path))
        return found | {"path": path}

    dataset = recipe["dataset"]
    read = {name: visit(dataset[name]) for name in ("source", "target")}
    digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:16] if marks else None
    return recipe | {"dataset": dataset | read | {"content": digest}}


def plan(run: Path, settings: Settings, force: frozenset[str] = frozenset()) -> list[Planned]:
    """What would happen to each stage of an existing run folder, in order."""
    planned: list[Planned] = []
    stale: set[str] = set()
    system = yamlio.load(run / "recipe.yaml")["system"]
    with graph.open_graph(run, settings) as opened:
        for node in opened.stages:
            why = {"forced": "asked for"} if node.name in force else node.why()
            upstream = [name for name in node.upstream if name in stale]
            state: Literal["runs", "may run", "cached"]
            if why:
                state = "runs"
            elif upstream:
                state, why = "may run", dict.fromkeys(upstream, "may change")
            else:
                state = "cached"
            if state != "cached":
                stale.add(node.name)
            cost = records.last_cost(settings, node.name, run.name, system)
            planned.append(Planned(node.name, state, why, cost))
    return planned


def published(run: Path, settings: Settings, stages: list[str]) -> bool:
    """Whether everything that follows the commits of these stages was done, too."""
    with graph.open_graph(run, settings) as opened:
        done = all(publish.published(run, opened.node(name)) for name in stages)
    return done and (run / "report.html").is_file()
