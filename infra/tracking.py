"""MLflow tracking: one experiment a system, a parent run for each run of a recipe, a child for each stage.

Everything is found before it is created (by the tags `tessera.run`, `tessera.recipe` and `tessera.key`), so that whatever
was interrupted can be done again. The embedded store is used directly when no server is named: nothing has to be started
to write to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infra import mlflow_store, services
from infra.settings import Settings
from infra.storage import file_lock

_LONGEST = 500  # letters of a parameter's value that are kept


class Tracking:
    """A client for the project's MLflow store."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # after the import, which sets its own
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # it prints the trace of what it raises

        uri = services.addresses(settings).mlflow or settings.store_uri
        if uri == settings.store_uri:
            mlflow_store.make(settings)
        self.client = MlflowClient(uri, uri)
        self._experiments: dict[str, str] = {}

    def experiment(self, system: str) -> str:
        """The experiment of a system, made if need be."""
        if system not in self._experiments:
            with file_lock(self.settings.home / "mlflow.lock"):
                found = self.client.get_experiment_by_name(system)
                folder = self.settings.artifacts / system
                self._experiments[system] = (
                    found.experiment_id
                    if found
                    else self.client.create_experiment(system, artifact_location=folder.as_uri())
                )
        return self._experiments[system]

    def parent(self, system: str, run: str, recipe: Mapping[str, Any]) -> str:
        """The MLflow run that stands for a run folder; another one when its recipe has changed, for MLflow's parameters
        cannot change."""
        shown = {name: value for name, value in recipe.items() if name != "code"}
        digest = hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode()).hexdigest()[:16]
        query = f"tags.`tessera.run` = '{run}' and tags.`tessera.stage` = 'run' and tags.`tessera.recipe` = '{digest}'"
        tags = {"tessera.run": run, "tessera.stage": "run", "tessera.recipe": digest}
        made, is_new = self._find_or_create(system, query, tags, run)
        if is_new or not self.client.get_run(made).data.params:  # killed before the parameters were there
            self._params(made, shown)
        return made

    def child(self, system: str, parent: str, run: str, stage: str, key: str) -> str:
        """The MLflow run of one stage key within a run."""
        query = f"tags.`tessera.run` = '{run}' and tags.`tessera.key` = '{key}'"
        tags = {"tessera.run": run, "tessera.stage": stage, "tessera.key": key, "mlflow.parentRunId": parent}
        return self._find_or_create(system, query, tags, stage)[0]

    def _find_or_create(self, system: str, query: str, tags: dict[str, str], name: str) -> tuple[str, bool]:
        experiment = self.experiment(system)
        if found := self._find(experiment, query):
            return found, False
        with file_lock(self.settings.home / "mlflow-runs.lock"):  # two processes must not both find none
            if found := self._find(experiment, query):
                return found, False
            return self.client.create_run(experiment, tags=tags, run_name=name).info.run_id, True

    def metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Final metrics. Their time is the start of the run, so that logging them again adds nothing."""
        started = self.client.get_run(run_id).info.start_time / 1000
        self.steps(run_id, [{"step": step, "time": started, **values}])

    def steps(self, run_id: str, rows: Iterable[Mapping[str, float]]) -> None:
        """Step metrics in one call; each row has `step`, `time` and values."""
        from mlflow.entities import Metric

        found = [
            Metric(_name(name), float(value), int(row["time"] * 1000), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in ("step", "time")
        ]
        for start in range(0, len(found), 900):
            self.client.log_batch(run_id, metrics=found[start : start + 900])

    def inputs(self, run_id: str, hashes: Mapping[str, str]) -> None:
        """What a stage read, by content: {path: tree hash}."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entries = [
            DatasetInput(
                Dataset(Path(path).name, digest[:36], "dvc", json.dumps({"path": path, "md5": digest})),
                [InputTag("mlflow.data.context", "input")],
            )
            for path, digest in hashes.items()
        ]
        if entries:
            self.client.log_inputs(run_id, datasets=entries)

    def folder(self, run_id: str, path: Path, name: str) -> None:
        if path.is_dir() and any(path.iterdir()):
            self.client.log_artifacts(run_id, str(path), name)

    def file(self, run_id: str, path: Path) -> None:
        self.client.log_artifact(run_id, str(path))

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        self.client.set_terminated(run_id, status)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.client.set_tag(run_id, name, value)

    def _find(self, experiment: str, query: str) -> str | None:
        found = self.client.search_runs([experiment], query, max_results=1)
        return found[0].info.run_id if found else None

    def _params(self, run_id: str, recipe: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(name, shorten(value)) for name, value in flatten(recipe)]
        for start in range(0, len(flat), 90):
            self.client.log_batch(run_id, params=flat[start : start + 90])


def flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """A nested mapping as dotted names with texts."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{prefix}.{index}")
    elif prefix:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def shorten(value: str) -> str:
    """A parameter's text as MLflow may keep it; a long one says how much of it is missing."""
    left_out = f" ... {len(value)} letters"
    return value if len(value) <= _LONGEST else value[: _LONGEST - len(left_out)] + left_out


def _name(metric: str) -> str:
    """MLflow allows letters, digits and `_-. /:` in a name."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in metric)
