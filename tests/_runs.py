"""A project with a trivial stage graph, for tests of what surrounds a run: `a -> b -> c`, each with its own section.

The bodies are a script of the project, so that DVC's own command line can run the same graph."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from infra import graph
from infra.settings import Settings

STAGES = ("a", "b", "c")

_SCRIPT = """
import json, pathlib, re, sys
stage = sys.argv[1]
section = re.search(rf"^{stage}: (.*)$", pathlib.Path("recipe.yaml").read_text(), re.M).group(1)
before = {"b": "a", "c": "b"}.get(stage)
text = section + (pathlib.Path(f"outputs/{before}/x.txt").read_text() if before else "")
for folder in (f"outputs/{stage}/deep", "metrics"):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
pathlib.Path(f"outputs/{stage}/x.txt").write_text(text + "\\n")
pathlib.Path(f"outputs/{stage}/deep/same.txt").write_text("same\\n")
pathlib.Path(f"metrics/{stage}.json").write_text(json.dumps({"letters": len(text)}))
with open("../../bodies.log", "a") as log:
    log.write(stage + "\\n")
"""

_GRAPH = """stages:
  a:
    cmd: {python} ../../make.py a
    params: [{{recipe.yaml: [a]}}]
    outs: [outputs/a]
    metrics: [metrics/a.json]
  b:
    cmd: {python} ../../make.py b
    deps: [outputs/a]
    params: [{{recipe.yaml: [b]}}]
    outs: [outputs/b]
    metrics: [metrics/b.json]
  c:
    cmd: {python} ../../make.py c
    deps: [outputs/b]
    params: [{{recipe.yaml: [c]}}]
    outs: [outputs/c]
    metrics: [metrics/c.json]
"""


def make_project(root: Path, git: bool = False) -> Settings:
    root.mkdir(parents=True, exist_ok=True)
    (root / "make.py").write_text(_SCRIPT)
    if git:
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        (root / ".gitignore").write_text("/.tessera/\n")
    return Settings(project=root, home=Path(".tessera"))


def make_run(settings: Settings, name: str, **sections: str) -> Path:
    """A run folder with the sections a, b, c (flow mappings; default `{size: 1}`)."""
    run = settings.runs / name
    run.mkdir(parents=True, exist_ok=True)
    write_recipe(run, **sections)
    (run / "dvc.yaml").write_text(_GRAPH.format(python=sys.executable))
    graph.create(run, settings)
    return run


def write_recipe(run: Path, **sections: str) -> None:
    (run / "recipe.yaml").write_text("".join(f"{s}: {sections.get(s, '{size: 1}')}\n" for s in STAGES))


def body(run: Path, stage: str) -> None:
    subprocess.run([sys.executable, "../../make.py", stage], cwd=run, check=True)


def walk(run: Path) -> dict[str, str]:
    """Brings a run up to date as the pipeline does; {stage: "cached" | "restored" | "ran"}."""
    states = {}
    with graph.open_graph(run) as opened:
        for node in opened.stages:
            if not node.why():
                states[node.name] = "cached"
                continue
            states[node.name] = "restored" if node.restore() else "ran"
            if states[node.name] == "ran":
                body(run, node.name)
            node.commit()
    return states


def all_of(state: str, stages: Iterable[str] = STAGES) -> dict[str, str]:
    return dict.fromkeys(stages, state)
