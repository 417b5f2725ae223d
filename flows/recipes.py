"""Recipes: from a short file to the complete, validated description of a run.

`resolve` applies the scale and the overrides, lets every component's constructor fill in its defaults, and adds the code
hashes. What comes out is all a run is made from. Resolving needs the components (and torch with them), so the result is
kept under a hash of everything it depends on; a second time nothing heavy is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from components import yamlio
from components.registry import ComponentError, nearest
from flows import code, runs
from infra.storage import write_bytes_atomic

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DEFAULT_SCALE = "tiny"


class RecipeError(ValueError):
    """A mistake in a recipe or in the way it was asked for: where, what was expected, what is nearest."""

    user_error = True


def list_recipes(project: Path) -> list[str]:
    return sorted(path.stem for path in (project / "recipes").glob("*.yaml") if _NAME.fullmatch(path.stem))


def list_scales(project: Path) -> list[str]:
    """Every scale that some recipe has, smallest first."""
    found: set[str] = set()
    for name in list_recipes(project):
        with suppress(RecipeError):  # a broken recipe is reported when it is asked for, not when another one is
            found |= set(load(project, name).get("scales") or {})
    order = ["tiny", "small", "paper"]
    return [scale for scale in order if scale in found | {"tiny", "paper"}] + sorted(found - set(order))


def load(project: Path, name: str) -> dict[str, Any]:
    """A recipe as it stands in its file."""
    path = _path(project, name)
    try:
        recipe = yamlio.load(path)
    except (yamlio.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{_shown(project, path)} is not valid YAML: {_explained(error)}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"{_shown(project, path)}: expected a mapping of sections, got {type(recipe).__name__}")
    scales = recipe.get("scales") or {}
    if not isinstance(scales, dict) or not all(isinstance(change or {}, dict) for change in scales.values()):
        raise RecipeError(f"{_shown(project, path)}: scales: expected scales with their changes, got {scales!r}")
    return recipe


def _explained(error: Exception) -> str:
    """What is wrong with some YAML, and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return (getattr(error, "problem", None) or " ".join(str(error).split())) + where


def _path(project: Path, name: str) -> Path:
    names = list_recipes(project)
    if not _NAME.fullmatch(name):
        raise RecipeError(f"'{name}' is not a recipe's name (there are: {', '.join(names)})")
    path = project / "recipes" / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(f"there is no recipe '{name}'{nearest(name, names)} (there are: {', '.join(names)})")
    return path


def _shown(project: Path, path: Path) -> str:
    return str(path.relative_to(project)) if path.is_relative_to(project) else str(path)


def expand(settings: list[str]) -> list[list[str]]:
    """`["a=1,2", "b=3"]` -> `[["a=1", "b=3"], ["a=2", "b=3"]]`; commas inside brackets or quotes belong to the value."""
    combinations: list[list[str]] = [[]]
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip():
            raise RecipeError(f"'{setting}' is not a change; write a.b=c")
        combinations = [[*head, f"{key.strip()}={part}"] for head in combinations for part in _split(value)]
    return combinations


def _split(value: str) -> list[str]:
    parts, depth, quote, current = [], 0, "", ""
    for letter in value:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(current)
            current = ""
            continue
        current += letter
    return [*parts, current]


def resolve(project: Path, name: str, scale: str | None, overrides: list[str]) -> dict[str, Any]:
    """The complete recipe of a run. Raises RecipeError."""
    path = _path(project, name)
    kept = _kept(project, name, scale, overrides)
    if kept.is_file():
        try:
            return json.loads(kept.read_text())
        except json.JSONDecodeError:
            kept.unlink()
    recipe = _scaled(project, path, load(project, name), scale)
    for override in overrides:
        _override(recipe, override)
    resolved = _validated(_shown(project, path), recipe)
    stages = runs.stages_of(project, resolved)
    resolved["code"] = code.of_recipe(project, resolved, stages)
    resolved = json.loads(json.dumps(resolved))
    write_bytes_atomic(kept, json.dumps(resolved).encode())  # in the order of the recipe, as it is now
    return resolved


def is_resolved(project: Path, name: str, scale: str | None, overrides: list[str]) -> bool:
    """Whether this very recipe was resolved before, so that its run may be up to date. Raises RecipeError."""
    return _kept(project, name, scale, overrides).is_file()


def _kept(project: Path, name: str, scale: str | None, overrides: list[str]) -> Path:
    content = hashlib.sha256(_path(project, name).read_bytes()).hexdigest()
    parts = [content, scale, overrides, code.source_hash(project), runs.template(project)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return project / code.KEPT / f"{key}.json"


def _scaled(project: Path, path: Path, recipe: dict[str, Any], scale: str | None) -> dict[str, Any]:
    """The recipe at a scale: `paper` is the base, any other one changes it. One without any is itself."""
    recipe = deepcopy(recipe)
    scales = recipe.pop("scales", None) or {}
    wanted = scale or DEFAULT_SCALE
    if wanted in scales:
        return merge(recipe, scales[wanted] or {})
    if wanted == "paper" or (not scales and wanted == DEFAULT_SCALE):
        return recipe
    choices = sorted({*scales, "paper"})
    raise RecipeError(
        f"{_shown(project, path)} has no scale '{wanted}'{nearest(wanted, choices)} (it has: {', '.join(choices)})"
    )


def merge(base: Any, change: Any) -> Any:
    """Mappings are merged; anything else, and a mapping of another `type`, takes the other's place."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return deepcopy(change)
    if "type" in change and change["type"] != base.get("type"):
        return deepcopy(change)
    merged = dict(base)
    for key, value in change.items():
        merged[key] = merge(base[key], value) if key in base else deepcopy(value)
    return merged


def _override(recipe: dict[str, Any], override: str) -> None:
    """Applies one `a.b=c`; numbers index lists."""
    key, sign, text = override.partition("=")
    if not sign:
        raise RecipeError(f"'{override}' is not a change; write a.b=c")
    try:
        value = text if runs.REFERENCE.fullmatch(text) else yamlio.parse(text)  # YAML wants quotes around @judge
    except yamlio.YAMLError as error:
        raise RecipeError(f"'{override}': the value is not valid YAML: {_explained(error)}") from error
    place: Any = recipe
    names = key.split(".")
    for depth, part in enumerate(names):
        last = depth == len(names) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise RecipeError(
                    f"'{override}': {'.'.join(names[:depth])} is a list of {len(place)}, '{part}' is not in it"
                )
            if last:
                place[int(part)] = value
            else:
                place = place[int(part)]
            continue
        if not isinstance(place, dict):
            raise RecipeError(f"'{override}': {'.'.join(names[:depth])} is {json.dumps(place)}, it has no '{part}'")
        if last:
            place[part] = value
        else:
            place = place.setdefault(part, {})


def _validated(file: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Every section through its model; errors carry file and key."""
    from flows.sections import SECTIONS, resolve_section

    unknown = [str(key) for key in recipe if key not in SECTIONS]
    if unknown:
        raise RecipeError(f"{file}: unknown section '{unknown[0]}'{nearest(unknown[0], list(SECTIONS))}")
    resolved: dict[str, Any] = {}
    for name in SECTIONS:
        try:
            resolved[name] = resolve_section(name, recipe)
        except ComponentError as error:
            where = ".".join(str(part) for part in (name, *error.path))
            raise RecipeError(f"{file}: {where}: {error.message}") from error
    _check_references(file, resolved)
    return resolved


def _check_references(file: str, recipe: dict[str, Any]) -> None:
    """`@name` must be one of the recipe's networks."""
    networks = list(recipe["networks"] or {})

    def visit(value: Any, where: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, f"{where}.{key}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                visit(inner, f"{where}.{index}")
        elif isinstance(value, str) and (match := runs.REFERENCE.fullmatch(value)) and match["name"] not in networks:
            listing = f" (it has: {', '.join(networks)})" if networks else " (it has none)"
            raise RecipeError(
                f"{file}: {where}: the recipe has no network '{value}'{nearest(match['name'], networks)}{listing}"
            )

    for section in ("tokenizer", "generator", "posttraining", "evaluation"):
        visit(recipe[section], section)


def schema(project: Path) -> dict[str, Any]:
    """The JSON schema of a recipe, for editors."""
    from flows.sections import json_schema

    return json_schema()
