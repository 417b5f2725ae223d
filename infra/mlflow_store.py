"""MLflow's embedded store, made whole or not at all, and the server before it.

MLflow makes its tables by some fifty migrations, each of which changes the file for good before it is noted as done: a kill
or a full disk in between leaves a store that no later start can open. So they run on a new file, which then takes its place.

    python -m infra.mlflow_store --host ... --port ...     # what `mlflow server` takes, once the store is there
"""

from __future__ import annotations

import os
import sys
import uuid

from infra.settings import Settings
from infra.storage import file_lock


def make(settings: Settings) -> None:
    """The store of the project, if there is none; one process at a time."""
    path = settings.home / "mlflow.db"
    settings.home.mkdir(parents=True, exist_ok=True)
    with file_lock(settings.home / "mlflow.lock"):
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        for left in settings.home.glob(".new-mlflow-*"):  # by a kill
            left.unlink()
        fresh = path.with_name(f".new-mlflow-{uuid.uuid4().hex}.db")  # MLflow keeps a connection for each name
        try:
            store = SqlAlchemyStore(f"sqlite:///{fresh}", settings.artifacts.as_uri())
            store.engine.dispose()  # with the last connection everything is in this one file
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


def main() -> None:
    make(Settings())
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *sys.argv[1:]])


if __name__ == "__main__":
    main()
