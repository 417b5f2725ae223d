"""Every source and every way to weigh a pool, from a recipe through the flows to a committed, registered-in-MLflow stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components import registry, yamlio
from components.interfaces import Mixture, Source
from flows import outputs
from flows.execute import Options, execute
from infra.settings import Settings, environment
from tests._project import locked, make
from tests._sources import small

pytestmark = pytest.mark.slow

INLINE = Options(until=None, force=frozenset(), keep=frozenset(), compute=1, inline=True)
TARGET = {"type": "python_stdlib", "packages": ["json", "csv", "abc"], "piece": 1500}
POOL = {
    "type": "several",
    "sources": {
        "help": {"type": "pydoc_text", "piece": 1500},
        "code": {"type": "python_stdlib", "packages": ["email", "logging"], "piece": 1500},
    },
}
PROBLEM = {
    "embedding": {"type": "hashed_ngrams", "dimensions": 8},
    "prune": [{"type": "text_quality"}],
    "clustering": {"fine": 8, "most": 3},
    "proxy": {"type": "byte_ngrams", "order": 3, "budget": 20_000, "final_budget": 40_000},
}
METHODS: dict[str, dict[str, Any]] = {
    "climb": {"rounds": [4, 2], "candidates": 100, "compare": False},
    "regmix": {"proxies": 4, "candidates": 100},
    "random_search": {"proxies": 4},
    "manual": {"weights": {"help": 0.2, "code": 0.8}},
    "uniform": {},
    "proportional": {},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    settings = make(tmp_path_factory.mktemp("flows") / "p")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(settings), "TESSERA_PROJECT": str(settings.project)}.items():
            patch.setenv(name, value)
        yield settings


def run(settings: Settings, name: str, recipe: dict[str, Any]) -> Path:
    """Writes the recipe and runs it."""
    content = {"system": name, **recipe}
    (settings.project / "recipes" / f"{name}.yaml").write_text(yamlio.dump(content))
    execute(settings, name, None, [], "", None, INLINE)
    return settings.runs / f"{name}-tiny"


@pytest.mark.parametrize("name", registry.names(Source))
def test_a_source(project: Settings, name: str, tmp_path: Path) -> None:
    source = small(name, tmp_path / "data")
    pictures = "image" in registry.build(Source, source).modalities
    section = {"source": source, "held_out": 0.3, "max_broken": 0.2}
    made = run(
        project,
        name.replace("_", "-"),
        {"dataset": section | ({"image": {"size": 16, "channels": 3}} if pictures else {})},
    )
    assert set(locked(made)) == {"dataset"}
    about = json.loads((made / "outputs" / "dataset" / "dataset.json").read_text())
    assert about["splits"]["train"]["rows"] and about["splits"]["held_out"]["rows"]
    assert (made / "outputs" / "dataset" / "data.html").stat().st_size > 2000
    assert list(made.glob("events/*.json"))


def test_every_method_is_tested() -> None:
    assert set(METHODS) == set(registry.names(Mixture))


@pytest.mark.parametrize("name", METHODS)
def test_a_mixture(project: Settings, name: str) -> None:
    section = {"type": name, "problem": PROBLEM, **METHODS[name]}
    made = run(
        project, f"by-{name.replace('_', '-')}", {"dataset": {"source": POOL, "target": TARGET}, "mixture": section}
    )
    assert set(locked(made)) == {"dataset", "mixture"}
    shown = outputs.tables(made, "mixture")
    assert "clusters" in shown
    metrics = json.loads((made / "metrics" / "mixture.json").read_text())
    assert metrics["target_loss"] > 0
