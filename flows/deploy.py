"""`tessera up` and `tessera deploy`: the services of this machine, and the flows published to Prefect.

The deployments are declared in `prefect.yaml`. Prefect stores the form of a flow when it is deployed and refuses choices
that it does not know, so the digest of recipes and flows is kept beside it and a deployment made anew when it changed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from flows.terminal import console, table
from infra import services
from infra.settings import Settings
from infra.storage import write_bytes_atomic

POOL = "tessera"


class DeployError(RuntimeError):
    """Prefect refused the deployments; the message holds what it said."""


def worker_command() -> list[str]:
    """The process that runs what is scheduled."""
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "local"]


def up(settings: Settings) -> None:
    """Starts all services and publishes the flows; prints where they are."""
    started = time.monotonic()
    with console.status("starting Prefect, MLflow and Ray"):
        services.ensure(settings, {"prefect", "mlflow", "ray"}, idle=False)
        addresses = services.ensure(
            settings, {"prefect", "mlflow", "ray", "worker"}, extra={"worker": worker_command()}, idle=False
        )
    deploy(settings, quiet=True)
    rows: list[list[object]] = [
        ["Prefect", str(addresses.prefect).removesuffix("/api"), "run, schedule and watch flows"],
        ["MLflow", addresses.mlflow, "experiments, metrics, models"],
        ["Ray", addresses.dashboard, "where it computes; asks for a token"],
    ]
    table("", ["service", "address", "what for"], rows)
    console.print(f"Ray's token  {settings.home / 'ray_token'}", soft_wrap=True)
    console.print(f"up in {time.monotonic() - started:.0f} s; `tessera down` stops everything")


def deploy(settings: Settings, quiet: bool = False) -> None:
    """Publishes every deployment of `prefect.yaml`, unless nothing changed since the last time on this server."""
    addresses = services.ensure(settings, {"prefect"})
    digest = _digest(settings.project, str(settings.home))
    marker = settings.home / "deployed"
    if marker.is_file() and marker.read_text() == digest and _published(str(addresses.prefect)):
        if not quiet:
            console.print("the deployments are up to date")
        return
    variables = os.environ | {
        "PREFECT_API_URL": str(addresses.prefect),
        "TESSERA_PROJECT": str(settings.project),
        "TESSERA_WORK_POOL": os.environ.get("TESSERA_WORK_POOL", POOL),
    }
    for arguments in (["work-pool", "create", POOL, "--type", "process", "--overwrite"], ["deploy", "--all"]):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=settings.project, env=variables, capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-2000:]
            raise DeployError(f"`prefect {' '.join(arguments)}` failed:\n{said}")
    write_bytes_atomic(marker, digest.encode())
    if not quiet:
        console.print(f"published the flows of {settings.project / 'prefect.yaml'}")


def _published(api: str) -> bool:
    """Whether the server still knows the deployments (its database may be a new one)."""
    import httpx

    answer = httpx.get(f"{api}/deployments/name/pipeline/pipeline", timeout=10)
    return answer.status_code == 200


def _digest(project: Path, home: str) -> str:
    """Of everything that a form is made from."""
    parts = [project / "prefect.yaml", project / "dvc.yaml", *sorted((project / "recipes").glob("*.yaml"))]
    own = sorted(Path(__file__).parent.glob("*.py"))
    content = home.encode() + b"".join(path.name.encode() + path.read_bytes() for path in [*parts, *own])
    return hashlib.sha256(content).hexdigest()
