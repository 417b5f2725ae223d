"""A run's name, its folder, and the part of the stage graph that its recipe has."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from components import yamlio
from components.registry import nearest
from infra.storage import write_bytes_atomic

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
#: stages that a recipe has when it has another section
_WITH = {"tokens": "generator", "registration": "tokenizer"}
_ALWAYS = ("dataset",)


class RunError(ValueError):
    """A run name that is not allowed, or a run that is not there."""

    user_error = True


def package_root() -> Path:
    """Where the product's own recipes and stage graph are."""
    return Path(__file__).resolve().parent.parent


def project_root() -> Path:
    """The project: `TESSERA_PROJECT`, else the nearest folder upwards with dvc.yaml and recipes/, else the product's own."""
    named = os.environ.get("TESSERA_PROJECT")
    if named:
        return Path(named).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "recipes").is_dir():
            return folder
    return package_root()


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RunError(
            f"'{name}' cannot be a run's name: use small letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return name


def run_name(
    recipe: str, scale: str | None, overrides: list[str], data: str | None = None, given: str | None = None
) -> str:
    """`quickstart-tiny`, with the folder's name when the data is a person's own (`tokenizer-tiny-flowers`) and a short hash
    when the recipe was changed; or the name that was given."""
    if given:
        return check_name(given)
    name = f"{recipe}-{scale or 'tiny'}"
    if data:
        last = data.rstrip("/").rpartition("/")[2] if "://" in data else Path(data).resolve().name
        name += "-" + (re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:24] or "data")
    if overrides:
        name += "-" + hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:6]
    return check_name(name)


@lru_cache(maxsize=8)
def _template(project: Path, _changed: int) -> dict[str, Any]:
    return yamlio.load(project / "dvc.yaml")


def template(project: Path) -> dict[str, Any]:
    """The one stage graph."""
    path = project / "dvc.yaml"
    if not path.is_file():
        raise RunError(f"{project} is not a project: it has no dvc.yaml; make one with `tessera init DIR`")
    return _template(project, path.stat().st_mtime_ns)


def stage_names(project: Path) -> list[str]:
    return list(template(project)["stages"])


def sections_read(project: Path) -> dict[str, list[str]]:
    """The recipe sections each stage reads, as `dvc.yaml` declares them."""
    return {
        name: [section for entry in stage.get("params", []) for sections in entry.values() for section in sections]
        for name, stage in template(project)["stages"].items()
    }


#: one of the recipe's networks, where a component wants one
REFERENCE = re.compile(r"@(?P<name>[\w-]+)")

#: output that a stage loads -> the section of the component in it
_LOADED = {"tokenizer": "tokenizer", "generator": "generator", "posttraining": "generator", "networks": "networks"}


def sections_loaded(project: Path, recipe: dict[str, Any]) -> dict[str, list[str]]:
    """The recipe sections whose trained components each stage of a resolved recipe loads, by its inputs."""
    return {
        name: [_LOADED[output] for dep in stage.get("deps", []) if (output := Path(dep).name) in _LOADED]
        for name, stage in graph_for(project, recipe)["stages"].items()
    }


def stages_of(project: Path, recipe: dict[str, Any]) -> list[str]:
    """The stages a resolved recipe has: a null or empty section has none."""
    return [name for name in stage_names(project) if name in _ALWAYS or recipe.get(_WITH.get(name, name))]


def references(value: Any) -> set[str]:
    """The networks that a part of a recipe refers to as `@name`."""
    if isinstance(value, dict):
        return set().union(*map(references, value.values()))
    if isinstance(value, list):
        return set().union(*map(references, value))
    match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return {match["name"]} if match else set()


def graph_for(project: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The run's own dvc.yaml: the stages the recipe has, without inputs from those it has not, or networks that nothing
    in the stage's sections refers to."""
    present, sections = stages_of(project, recipe), sections_read(project)
    graph: dict[str, Any] = {}
    for name in present:
        stage = dict(template(project)["stages"][name])
        referring = references([recipe.get(section) for section in sections[name]])
        without = set() if referring else {"networks"}
        deps = [dep for dep in stage.get("deps", []) if (output := Path(dep).name) in present and output not in without]
        stage.pop("deps", None)
        graph[name] = stage | ({"deps": deps} if deps else {})
    return {"stages": graph}


def write(project: Path, name: str, recipe: dict[str, Any]) -> Path:
    """`runs/<name>/` with the resolved recipe and its graph; files that say the same stay untouched."""
    folder = project / "runs" / check_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    head = "# Made by `tessera run`: the resolved recipe of this run. Change recipes/ or use --set instead.\n"
    for path, text in (
        (folder / "recipe.yaml", head + yamlio.dump(recipe)),
        (folder / "dvc.yaml", yamlio.dump(graph_for(project, recipe))),
    ):
        if not path.is_file() or path.read_text() != text:
            write_bytes_atomic(path, text.encode())
    return folder


def find(project: Path, name: str) -> Path:
    """The folder of an existing run, by its name or as runs/<name>."""
    short = check_name(Path(name).name if Path(name).parent.name == "runs" else name.rstrip("/"))
    folder = project / "runs" / short
    if not (folder / "recipe.yaml").is_file():
        raise RunError(
            f"there is no run '{short}'{nearest(short, [r.name for r in all_runs(project)])}; `tessera runs` lists them"
        )
    return folder


def all_runs(project: Path) -> list[Path]:
    folder = project / "runs"
    return sorted(p.parent for p in folder.glob("*/recipe.yaml")) if folder.is_dir() else []


def latest(project: Path, stage: str) -> Path:
    """The run that made this stage's output last."""
    found = [run for run in all_runs(project) if (run / "outputs" / stage).is_dir()]
    if not found:
        raise RunError(f"no run has a {stage} yet; make one, e.g. `tessera run tokenizer --data FOLDER`")
    return max(found, key=lambda run: (run / "outputs" / stage).stat().st_mtime)


def stage_list(run: Path) -> list[str]:
    """The stages of an existing run, in order."""
    return list(yamlio.load(run / "dvc.yaml")["stages"])


def metrics(run: Path, stage: str) -> dict[str, float]:
    path = run / "metrics" / f"{stage}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def main_figures(values: dict[str, float]) -> dict[str, float]:
    """Of a stage's metrics those for people: without single classes, ends of intervals, and what post-training began with."""
    return {name: value for name, value in values.items() if "." not in name or name.startswith("rl.")} or values


def all_metrics(run: Path) -> dict[str, float]:
    """`{"<stage>.<metric>": value}` of every stage that has ended."""
    return {f"{stage}.{name}": value for stage in stage_list(run) for name, value in metrics(run, stage).items()}


_MODULE = '''"""Components of this project. Use one in a recipe as `type: my_components:Mirror`."""

from __future__ import annotations

import torch
from torch import Tensor

from components.interfaces import Transform


class Mirror(Transform):
    """Left and right exchanged, always; keyword-only arguments would be its configuration."""

    def __init__(self) -> None: ...

    def __call__(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return images.flip(-1)
'''


def init_project(folder: Path) -> None:
    """Makes a project: recipes, stage graph, deployments, an example component. Refuses a folder that holds other things."""
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    own = package_root()
    shutil.copytree(own / "recipes", folder / "recipes")
    for name in ("dvc.yaml", "prefect.yaml"):
        shutil.copy(own / name, folder / name)
    (folder / "my_components.py").write_text(_MODULE)
    (folder / ".gitignore").write_text("/.tessera/\n__pycache__/\n")
    (folder / "README.md").write_text(
        "# A Tessera project\n\n`tessera run quickstart` runs the example, `tessera run tokenizer --data FOLDER` trains on your\n"
        "pictures. Recipes are in `recipes/`, components of your own in `my_components.py`.\n"
    )
