"""Bringing one run up to date: the stages of its graph in order, each skipped, restored, or run and committed.

    for each stage:  nothing changed            -> cached
                     another run made the same  -> restored from the shared cache
                     otherwise                  -> body (infra.compute.launch), commit (infra.graph), publish

Knows neither Prefect nor a terminal: `flows.pipeline` wraps each step into a task, the CLI draws what `watch` is told.
A crash at any point is mended by walking again: before the commit nothing is visible, and what follows the commit
(`flows.publish`) is idempotent and replayed for every committed stage that has no lineage event yet.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from components import yamlio
from flows import publish, report
from flows.promotion import Decision, person
from infra import compute, full_disk, records
from infra import graph as graphs
from infra.settings import Settings
from infra.storage import write_json_atomic

State = Literal["ran", "cached", "restored", "kept"]


@dataclass
class Outcome:
    """What happened to one stage. `made_by` names the run that first made a cached output, where it is known."""

    stage: str
    state: State
    seconds: float = 0.0
    body_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    made_by: str | None = None


Watch = Callable[[str, dict[str, Any]], None]  # (stage, event): {"state": ...} | progress | {"metrics": [...]}


def ignore(stage: str, event: dict[str, Any]) -> None:
    """A `Watch` that looks away."""


@dataclass
class Walk:
    """One pass over a run. `force` names stages that run even when they are fresh, `keep` those whose present output is
    accepted although something changed."""

    run: Path
    settings: Settings
    how: compute.Compute
    graph: graphs.RunGraph
    force: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    watch: Watch = ignore
    flow_run: str | None = None

    def step(self, name: str) -> Outcome:
        """Brings one stage up to date; its inputs already are. Raises DiskFull, and what its body and commit raise."""
        with full_disk.explained(self.run, self.settings.home):
            return self._step(name)

    def _step(self, name: str) -> Outcome:
        node = self.graph.node(name)
        started = time.monotonic()
        why = {"forced": "asked for"} if name in self.force else node.why()
        key = node.key()
        record = records.find(self.settings, key)
        made_by = record["run"] if record else None
        if not why:
            outcome = Outcome(name, "cached", metrics=self._metrics(name), made_by=made_by)
        elif name in self.keep:
            publish.note_kept(
                self.run, name, key, person(), why
            )  # first: a kill in between notes it twice, never not at all
            node.commit()
            outcome = Outcome(name, "kept", metrics=self._metrics(name), why=why)
        elif name not in self.force and node.restore():
            node.commit()
            outcome = Outcome(name, "restored", metrics=self._metrics(name), why=why, made_by=made_by)
        else:
            outcome = self._execute(node, key, why)
        if record is None:  # it ran now, or before a kill or under `dvc repro` that left none
            self._record(node, key, outcome)
        # From here on the outputs are the truth; the body's record would answer for outputs altered later.
        (self.run / "work" / name / "record.json").unlink(missing_ok=True)
        outcome.seconds = time.monotonic() - started
        publish.publish(self.run, node, self.settings, outcome, flow_run=self.flow_run)
        self.watch(name, {"state": outcome.state, "seconds": outcome.seconds, "metrics": outcome.metrics})
        return outcome

    def _execute(self, node: graphs.StageNode, key: str, why: dict[str, str]) -> Outcome:
        work = self.run / "work" / node.name
        self._make_workplace(node, work)
        self.watch(node.name, {"state": "running", "why": why})
        tracker = publish.Tracker(self.run, node, self.settings)

        def progress(event: dict[str, Any]) -> None:
            tracker.log(event)
            self.watch(node.name, event)

        attempt = key if node.name not in self.force else f"{key}-{time.time_ns()}"
        began = time.time()
        metrics = compute.launch(
            "flows.worker:run_stage",
            {"run": str(self.run), "stage": node.name},
            key=attempt,
            run=self.run.name,
            work=work,
            settings=self.settings,
            compute=self.how
            if node.trains
            else compute.Compute(mode="worker" if self.how.mode == "train" else self.how.mode),
            on_progress=progress,
        )
        tracker.flush()
        node.commit()
        seconds = _body_seconds(work)
        return Outcome(
            node.name,
            "ran",
            body_seconds=time.time() - began if seconds is None else seconds,
            metrics=metrics,
            why=why,
        )

    def _record(self, node: graphs.StageNode, key: str, outcome: Outcome) -> None:
        """What other runs see of a committed stage."""
        work = self.run / "work" / node.name
        seconds = outcome.body_seconds if outcome.state == "ran" else _body_seconds(work)
        records.put(
            self.settings,
            key,
            stage=node.name,
            run=self.run.name,
            system=yamlio.load(self.run / "recipe.yaml")["system"],
            outs=node.outs,
            metrics=outcome.metrics,
            seconds=seconds,
            started=time.time() - (seconds or 0.0),
        )

    def _make_workplace(self, node: graphs.StageNode, work: Path) -> None:
        """Keeps the checkpoints of an interrupted or shorter training, and nothing of a different one."""
        identity = {"continues": _continuation(node)}
        path = work / "identity.json"
        if node.name in self.force or not path.is_file() or json.loads(path.read_text()) != identity:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_json_atomic(path, identity)

    def finish(self, decision: Decision | None = None) -> None:
        """The report, MLflow's parent run, and the outputs into the remote."""
        with full_disk.explained(self.run, self.settings.home):
            report.write(self.run, decision)
            publish.finish(self.run, self.settings)
            self.graph.push()

    def _metrics(self, name: str) -> dict[str, float]:
        path = self.run / "metrics" / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else {}


def _continuation(node: graphs.StageNode) -> str:
    """The stage key without the number of training steps: equal for trainings of which one is the other's beginning."""

    def without_steps(value: Any) -> Any:
        if isinstance(value, dict):
            train = value.get("train")
            kept = {k: without_steps(v) for k, v in value.items() if k != "train"}
            return kept | (
                {"train": {k: v for k, v in train.items() if k != "steps"}} if isinstance(train, dict) else {}
            )
        return value

    content = json.dumps([node.name, node.deps, without_steps(node.params)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _body_seconds(work: Path) -> float | None:
    """How long the body took whose record is still there."""
    record = work / "record.json"
    return json.loads(record.read_text()).get("seconds") if record.is_file() else None


@contextmanager
def opened(run: Path, settings: Settings, how: compute.Compute, **options: Any) -> Iterator[Walk]:
    """A walk over an existing run folder."""
    with graphs.open_graph(run, settings) as opened_graph:
        yield Walk(run, settings, how, opened_graph, **options)
