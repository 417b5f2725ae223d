"""What follows a commit, each part idempotent: the MLflow run of the stage, the model version, the lineage event.

The event is written last. A committed stage without one was interrupted here (or was brought up to date by `dvc repro`),
and is published by whoever walks the run next.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import yamlio
from flows.worker import step_metrics
from infra import graph, lineage, records, services
from infra.settings import Settings

if TYPE_CHECKING:
    from flows.walk import Outcome
    from infra.tracking import Tracking

_BATCH = 20  # step metrics that are sent together


class Tracker:
    """Sends what a running stage reports to its MLflow run while it runs."""

    def __init__(self, run: Path, node: graph.StageNode, settings: Settings) -> None:
        self.tracking, self.run_id = _child(run, node, settings, node.key())
        self.waiting: list[dict[str, float]] = []

    def log(self, event: dict[str, Any]) -> None:
        self.waiting += event.get("metrics", [])
        if len(self.waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        self.tracking.steps(self.run_id, self.waiting)
        self.waiting = []


_clients: dict[str, Tracking] = {}


def tracking(settings: Settings) -> Tracking:
    """One client a process and store."""
    from infra.tracking import Tracking

    name = str(settings.home)
    if name not in _clients:
        _clients[name] = Tracking(settings)
    return _clients[name]


def _child(run: Path, node: graph.StageNode, settings: Settings, key: str) -> tuple[Tracking, str]:
    recipe = yamlio.load(run / "recipe.yaml")
    client = tracking(settings)
    parent = client.parent(recipe["system"], run.name, recipe)
    return client, client.child(recipe["system"], parent, run.name, node.name, key)


def published(run: Path, node: graph.StageNode) -> bool:
    return lineage.event_path(run, node.name, node.key()).is_file()


def publish(run: Path, node: graph.StageNode, settings: Settings, outcome: Outcome, flow_run: str | None) -> None:
    """Everything that others see of a committed stage; does nothing if it was published before."""
    key = node.key()
    if lineage.event_path(run, node.name, key).is_file():
        return
    client, run_id = _child(run, node, settings, key)
    client.inputs(run_id, node.deps)
    if outcome.metrics:
        steps = step_metrics(run / "work" / node.name)  # the final values end the curves, they do not begin them
        client.metrics(run_id, outcome.metrics, step=steps[-1]["step"] if steps else 0)
    output = run / "outputs" / node.name
    client.folder(run_id, output / "figures", "figures")
    client.folder(run_id, output / "tables", "tables")
    facts: dict[str, Any] = {"mlflow_run": run_id, "flow_run": flow_run, "seconds": outcome.body_seconds}
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
        sections=node.params,
        metrics=outcome.metrics,
        facts={**facts, "made_by": record["run"] if record else run.name},
    )


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
    recipe = yamlio.load(run / "recipe.yaml")
    client = tracking(settings)
    parent = client.parent(recipe["system"], run.name, recipe)
    evaluation = run / "metrics" / "evaluation.json"
    if evaluation.is_file():
        client.metrics(parent, json.loads(evaluation.read_text()))
    if (run / "report.html").is_file():
        client.file(parent, run / "report.html")
    client.finish(parent)


def page(run: Path, settings: Settings) -> str | None:
    """The address of the run in MLflow's UI, where its server runs."""
    server = services.addresses(settings).mlflow
    if not server or not server.startswith("http"):
        return None
    recipe = yamlio.load(run / "recipe.yaml")
    client = tracking(settings)
    made = client.parent(recipe["system"], run.name, recipe)
    return f"{server}/#/experiments/{client.experiment(recipe['system'])}/runs/{made}"
