"""The pipeline as a person sees it in Prefect: one flow run a run, one task a stage, results as artifacts.

Whether a stage has to run is not Prefect's decision but the run's (`flows.walk`); a stage that is up to date ends in the
state *Cached*. A retry walks again and therefore repeats nothing that was committed. What a body prints goes to the log
of its task run, bounded; all of it stays in `work/<stage>/worker.log`, which `tessera logs` shows.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import get_run_context
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, State

from flows import outputs, plan, promotion, publish
from flows.request import Request
from flows.walk import Outcome, Walk, Watch, ignore, opened
from infra import compute, services
from infra.settings import Settings

#: Who else wants to know what happens while the flow runs (the command line draws progress bars from it).
watcher: ContextVar[Watch] = ContextVar("watcher", default=ignore)

_ROWS = 200  # of a table that the UI shows; the report and MLflow have them all
_LINES, _SECONDS, _LETTERS = 100, 5.0, 500  # of what a body prints: so many lines in that time, each cut to that length
_PROGRESS = 30.0  # seconds between two notes of progress in the log


def label() -> str:
    """Names a flow run by what it runs: `quickstart-tiny until evaluation`."""
    request = Request.model_validate(flow_run.parameters["request"])
    name = request.name or "-".join([request.recipe, request.scale, *request.overrides])
    return name if request.until == "registration" else f"{name} until {request.until}"


def worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    """A mistake in recipe or data stays one; anything else may have been the machine."""
    error = state.result(raise_on_failure=False)
    return not getattr(error, "user_error", False)


@flow(name="pipeline", flow_run_name=label, persist_result=False)
def pipeline(request: Request) -> dict[str, dict[str, float]]:
    """Bring a run of a recipe up to date: data set, mixture, tokenizer, tokens, generator, post-training, evaluation,
    registration, promotion. Stages that are up to date are skipped."""
    return walk(request)


def walk(request: Request, until: str | None = None) -> dict[str, dict[str, float]]:
    """The body of `pipeline` and of every stage flow (those stop at their own stage)."""
    settings = Settings()
    logging.getLogger("prefect.task_runs").setLevel(logging.INFO)  # the command line quietens Prefect, not the bodies
    run = plan.prepare(settings, request.recipe, request.scale, request.overrides, request.name)
    how = compute.Compute(mode="train" if request.workers > 1 else "worker", workers=request.workers)
    results: dict[str, dict[str, float]] = {}
    last = until or request.until
    with ExitStack() as stack:
        stack.enter_context(services.lease(settings))
        compute.warm(run.name, settings)
        options = {"force": frozenset(request.force), "keep": frozenset(request.keep)}
        shown = _Shown(run)
        context = opened(run, settings, how, **options, watch=shown.watch, flow_run=str(flow_run.id))
        walker = stack.enter_context(context)
        stack.callback(compute.release, run.name, settings)
        for node in walker.graph.stages:
            state: Any = stage.with_options(name=node.name, task_run_name=node.name)(
                walker, node.name, shown, return_state=True
            )
            results[node.name] = state.result().metrics
            if node.name == last:
                break
        decision = None
        if "registration" in results:
            decision = promote.with_options(task_run_name="promotion")(settings, run)
        walker.finish(decision)
        page = publish.page(run, settings)
        text = f"[{run.name} in MLflow]({page})\n\n" if page else ""
        text += f"The report is `{run / 'report.html'}`; `tessera report {run.name}` opens it.\n"
        create_markdown_artifact(text, key="results", description=f"where the results of {run.name} are")
    return results


@task(cache_policy=NO_CACHE, persist_result=False, retries=1, retry_delay_seconds=2, retry_condition_fn=worth_retrying)
def stage(walker: Walk, name: str, shown: _Shown) -> State[Outcome]:
    """One stage: cached, restored from another run, or run on Ray and committed."""
    try:
        outcome = walker.step(name)
    finally:
        shown.rest()
    if outcome.metrics:
        rows = [{"metric": metric, "value": value} for metric, value in outcome.metrics.items()]
        create_table_artifact(rows, key=f"{name}-metrics", description=f"{name} of {walker.run.name}: {outcome.state}")
    if outcome.state != "cached":
        _show(walker.run, name)
    if outcome.state == "ran":
        return Completed(data=outcome, message=f"ran in {outcome.seconds:.1f} s")
    source = f", made by run {outcome.made_by}" if outcome.made_by else ""
    return Completed(name="Cached", data=outcome, message=f"{outcome.state}{source}")


def _show(run: Path, name: str) -> None:
    """The tables and figures of a stage as artifacts, wherever its output is."""
    for title, path in outputs.tables(run, name).items():
        if rows := json.loads(path.read_text())[:_ROWS]:
            create_table_artifact(rows, key=_key(name, title), description=f"{title} of {run.name}")
    for title, path in outputs.figures(run, name).items():
        picture = base64.b64encode(path.read_bytes()).decode()
        markdown = f"## {name}: {title}\n\n![{title}](data:image/png;base64,{picture})\n"
        create_markdown_artifact(markdown, key=_key(name, title), description=f"{title} of {run.name}")


def _key(name: str, title: str) -> str:
    return f"{name}-{title}".replace("_", "-").lower()


@task(cache_policy=NO_CACHE, persist_result=False)
def promote(settings: Settings, run: Path) -> promotion.Decision:
    """The gates, and the champion if they pass."""
    decision = promotion.decide(settings, run, who=promotion.person(), why="pipeline")
    if decision.verdicts:
        rows = [verdict.row() for verdict in decision.verdicts]
        create_table_artifact(rows, key="gates", description=decision.text)
    get_run_logger().info(decision.text)
    watcher.get()("promotion", {"state": "ran", "text": decision.text})
    return decision


class _Shown:
    """Passes what happens on to the watcher of this process and, at a bounded rate, to Prefect: progress as an artifact,
    what a body prints as the log of its task run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.artifacts: dict[str, tuple[Any, float]] = {}
        self.window, self.room = 0.0, _LINES  # of the log
        self.waiting: list[str] = []
        self.left_out = 0
        self.noted = 0.0

    def watch(self, name: str, event: dict[str, Any]) -> None:
        watcher.get()(name, event)
        if get_run_context() is None:
            return
        if lines := event.get("printed"):
            self._log(lines)
        if event.get("note") and time.monotonic() - self.noted > _PROGRESS:
            self.noted = time.monotonic()
            of = f"{event['done']}/{event['total']} " if event.get("total") else ""
            get_run_logger().info("%s%s", of, event["note"])
        if event.get("state") == "ran" and name in self.artifacts:
            event = {"done": 1, "total": 1, "note": "done"}
        if event.get("total"):
            self._progress(name, event)

    def rest(self) -> None:
        """Logs what a body printed last, for which there was no room yet."""
        self.room = _LINES
        self._log([])

    def _log(self, lines: list[str]) -> None:
        """Logs the lines for which there is room in this window; the newest of the others wait for the next one."""
        if time.monotonic() - self.window > _SECONDS:
            self.window, self.room = time.monotonic(), _LINES
        self.waiting += lines
        now, self.waiting = self.waiting[: self.room], self.waiting[self.room :]
        self.room -= len(now)
        logger = get_run_logger()
        if now and self.left_out:
            logger.info("(%d lines are left out here; `tessera logs %s` shows all)", self.left_out, self.run.name)
            self.left_out = 0
        for line in now:
            logger.info("%s", f"{line[:_LETTERS]} ... {len(line)} letters" if len(line) > _LETTERS else line)
        self.left_out += max(0, len(self.waiting) - _LINES)
        self.waiting = self.waiting[-_LINES:]

    def _progress(self, name: str, event: dict[str, Any]) -> None:
        percent = 100.0 * event["done"] / event["total"]
        artifact, last = self.artifacts.get(name, (None, 0.0))
        if artifact is None:
            artifact = create_progress_artifact(
                percent, key=f"{name}-progress", description=f"{name} of {self.run.name}"
            )
        elif time.monotonic() - last < 2.0 and event["done"] < event["total"]:
            return
        else:
            update_progress_artifact(artifact, percent, description=f"{name}: {event.get('note', '')}")
        self.artifacts[name] = (artifact, time.monotonic())
