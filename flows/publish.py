"""What follows a commit, each part idempotent: the MLflow run of the stage, the model version, the lineage event.

The event is written last. A committed stage without one was interrupted here (or was brought up to date by `dvc repro`),
and is published by whoever walks the run next.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from components import yamlio
from flows import initial, outputs
from flows.worker import step_metrics
from infra import graph, lineage, records, services
from infra.settings import Settings
from infra.storage import write_bytes_atomic

if TYPE_CHECKING:
    from flows.walk import Outcome
    from infra.tracking import Tracking

_BATCH = 20  # step metrics that are sent together


class Tracker:
    """Sends what a running stage reports to its MLflow run while it runs.

    That run is found or made beside the body, which has begun meanwhile: the import of MLflow alone takes two seconds."""

    def __init__(self, run: Path, node: graph.StageNode, settings: Settings) -> None:
        self.made = _beside.submit(_child, run, node.name, settings, node.key())
        _beside.submit(import_module, "mlflow.pyfunc")  # registration will want it
        self.waiting: list[dict[str, float]] = []

    def log(self, event: dict[str, Any]) -> None:
        self.waiting += event.get("metrics", [])
        if len(self.waiting) >= _BATCH and self.made.done():
            self.flush()

    def flush(self) -> None:
        client, run_id = self.made.result()
        client.steps(run_id, self.waiting)
        self.waiting = []


_beside = ThreadPoolExecutor(1, "mlflow")


_clients: dict[str, Tracking] = {}


def tracking(settings: Settings) -> Tracking:
    """One client a process and store."""
    from infra.tracking import Tracking

    name = str(settings.home)
    if name not in _clients:
        _clients[name] = Tracking(settings)
    return _clients[name]


def _child(run: Path, stage: str, settings: Settings, key: str) -> tuple[Tracking, str]:
    """The MLflow run of a stage key; asked for once a process."""
    recipe = run / "recipe.yaml"
    return tracking(settings), _child_id(run, recipe.stat().st_mtime_ns, stage, settings.home, key)


@lru_cache(maxsize=256)
def _child_id(run: Path, _changed: int, stage: str, home: Path, key: str) -> str:
    client = _clients[str(home)]
    system, parent = _parent(run, _changed, home)
    return client.child(system, parent, run.name, stage, key)


@lru_cache(maxsize=16)
def _parent(run: Path, _changed: int, home: Path) -> tuple[str, str]:
    """System and MLflow run of a run folder, as its recipe is now."""
    recipe = yamlio.load(run / "recipe.yaml")
    return recipe["system"], _clients[str(home)].parent(recipe["system"], run.name, recipe)


def published(run: Path, node: graph.StageNode) -> bool:
    return lineage.event_path(run, node.name, node.key()).is_file()


def publish(run: Path, node: graph.StageNode, settings: Settings, outcome: Outcome, flow_run: str | None) -> None:
    """Everything that others see of a committed stage; does nothing if it was published before."""
    key = node.key()
    if lineage.event_path(run, node.name, key).is_file():
        return
    client, run_id = _child(run, node.name, settings, key)
    client.inputs(run_id, node.deps)
    if outcome.metrics:
        steps = step_metrics(run / "work" / node.name)  # the final values end the curves, they do not begin them
        client.metrics(run_id, outcome.metrics, step=steps[-1]["step"] if steps else 0)
    _log_shown(client, run_id, run, node.name)
    facts: dict[str, Any] = {"mlflow_run": run_id, "flow_run": flow_run, "seconds": outcome.body_seconds}
    if kept := _kept(run, key):
        facts["kept"] = {"who": kept["who"], "why": kept["why"]}
    if node.name == "registration":
        facts["model_version"] = _register(run, node, settings, key, run_id)
    tags = {"tessera.state": outcome.state, **({"prefect.flow_run": flow_run} if flow_run else {})}
    client.tag(run_id, tags)
    client.finish(run_id)
    record = records.find(settings, key)
    lineage.emit(
        run,
        settings,
        stage=node.name,
        key=key,
        state=outcome.state,
        inputs=node.deps,
        outputs=node.outs,
        published=initial.inputs(yamlio.load(run / "recipe.yaml"), node.name),
        sections=node.params,
        metrics=outcome.metrics,
        facts={**facts, "made_by": record["run"] if record else run.name},
    )


KEPT = "kept.jsonl"  # in the events of a run: which outputs were accepted, one JSON object a line


def note_kept(run: Path, stage: str, key: str, who: str, why: dict[str, str]) -> None:
    """Notes who accepted the output of a stage as that of a key, and what had changed."""
    path = run / "events" / KEPT
    entry = {"stage": stage, "key": key, "time": time.time(), "who": who, "why": why}
    before = path.read_bytes() if path.is_file() else b""
    write_bytes_atomic(path, before + json.dumps(entry).encode() + b"\n")


def _kept(run: Path, key: str) -> dict[str, Any] | None:
    """The last note of a key."""
    path = run / "events" / KEPT
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return next((entry for entry in reversed(entries) if entry.get("key") == key), None)


def _log_shown(client: Tracking, run_id: str, run: Path, stage: str) -> None:
    """The figures and tables of a stage. Those in the store have the names of their hashes; MLflow wants their own."""
    local = run / "outputs" / stage
    with TemporaryDirectory() as place:
        if not local.is_dir():
            local = Path(place)
            for folder, found in (("figures", outputs.figures(run, stage)), ("tables", outputs.tables(run, stage))):
                (local / folder).mkdir()
                for name, path in found.items():
                    shutil.copyfile(path, local / folder / f"{name}{'.png' if folder == 'figures' else '.json'}")
        for folder in ("figures", "tables"):
            client.folder(run_id, local / folder, folder)


def _register(run: Path, node: graph.StageNode, settings: Settings, key: str, run_id: str) -> str:
    """The model version of the run's bundle, with what the ledger and the gates will ask for as tags."""
    from infra import registry

    recipe = yamlio.load(run / "recipe.yaml")
    metrics = run / "metrics" / "evaluation.json"
    commit = lineage.commit(settings.project)
    facts = {
        "tessera.data": node.deps["outputs/dataset"],
        "tessera.commit": commit.get("commit", "") + ("+" if commit.get("dirty") else ""),
        "tessera.metrics": json.dumps(json.loads(metrics.read_text()))[:4900] if metrics.is_file() else "{}",
    }
    bundle = run / "outputs" / "registration"
    return registry.register(settings, recipe["system"], bundle, key=key, run=run.name, run_id=run_id, facts=facts)


def finish(run: Path, settings: Settings) -> None:
    """Ends the MLflow run that stands for the run folder, with the report."""
    client = tracking(settings)
    _, parent = _parent(run, (run / "recipe.yaml").stat().st_mtime_ns, settings.home)
    evaluation = run / "metrics" / "evaluation.json"
    if evaluation.is_file():
        client.metrics(parent, json.loads(evaluation.read_text()))
    if (run / "report.html").is_file():
        client.file(parent, run / "report.html")
    client.finish(parent)


def page(run: Path, settings: Settings) -> str | None:
    """The address of the run in MLflow's UI, where its server runs.

    Its pages open for traces of language models, where runs are not seen, unless the address asks for model training: in
    3.17 neither a setting of the server nor the tag `mlflow.experimentKind` changes that."""
    server = services.addresses(settings).mlflow
    if not server or not server.startswith("http"):
        return None
    client = tracking(settings)
    system, made = _parent(run, (run / "recipe.yaml").stat().st_mtime_ns, settings.home)
    return f"{server}/#/experiments/{client.experiment(system)}/runs/{made}?workflowType=machine_learning"
