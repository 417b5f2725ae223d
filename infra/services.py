"""The local services of a project: Prefect, MLflow, Ray and the worker of the deployments, all on loopback.

`tessera run` and `tessera up` go the same way: `ensure` starts what is missing under the project's supervisor and attaches
to what runs. What `run` started ends by itself once nobody has used it for a while; what `up` started stays until `down`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import supervisor
from infra.settings import Settings, environment
from infra.storage import file_lock, write_bytes_atomic, write_json_atomic

_DEADLINE = 180.0  # seconds for a service to become healthy; two cores that start everything at once need a while


class ServiceError(RuntimeError):
    """A service that did not start; the message ends with what it printed."""


@dataclass(frozen=True)
class Addresses:
    """None where the service was not asked for and does not run."""

    prefect: str | None = None  # API URL
    mlflow: str | None = None
    ray: str | None = None  # host:port of the head
    dashboard: str | None = None


@dataclass(frozen=True)
class ServiceStatus:
    name: str
    state: str  # running | starting | failed
    address: str
    pid: int
    restarts: int
    detail: str = ""


def ensure(
    settings: Settings,
    names: set[str],
    extra: dict[str, list[str]] | None = None,
    idle: bool = True,
    on_progress: Callable[[str], None] | None = None,
) -> Addresses:
    """Starts what of `names` (prefect, mlflow, ray, or a key of `extra`, whose value is its command) does not run yet, all
    at once, and waits until everything is healthy. With `idle` false the services stay until `down`."""
    settings.home.mkdir(parents=True, exist_ok=True)
    own = {name for name in names if not _external(settings, name)}
    with file_lock(settings.home / "services.lock"):
        base = supervisor.folder(settings.home)
        if not idle:
            write_bytes_atomic(base / "keep", b"")
        write_json_atomic(base / "settings.json", {"idle_minutes": settings.idle_minutes})
        if own and not _supervised(settings):
            _clean(settings)
            if not idle:
                write_bytes_atomic(base / "keep", b"")
            _start_supervisor(settings)
        for name in sorted(own):
            path = base / "wanted" / f"{name}.json"
            if not path.is_file():
                write_json_atomic(path, _wanted(settings, name, extra or {}))
    for name in sorted(own):
        _wait(settings, name, on_progress)
    return addresses(settings)


def addresses(settings: Settings) -> Addresses:
    """Where the services are, as far as they run or the settings name them."""
    services = (_state(settings) or {}).get("services", {})
    found = {name: entry for name, entry in services.items() if supervisor.alive(entry)}
    ray = found.get("ray", {})
    return Addresses(
        prefect=settings.prefect_api or found.get("prefect", {}).get("address"),
        mlflow=settings.tracking_uri or found.get("mlflow", {}).get("address"),
        ray=settings.ray_address or ray.get("address"),
        dashboard=ray.get("dashboard"),
    )


def status(settings: Settings) -> list[ServiceStatus]:
    """Every service of the project that is wanted."""
    state = _state(settings)
    if not state or not supervisor.alive(state["supervisor"]):
        return []
    found = []
    for name, entry in state["services"].items():
        healthy = not entry["failed"] and supervisor.alive(entry) and _healthy(name, entry)
        how = "failed" if entry["failed"] else "running" if healthy else "starting"
        address = entry.get("address") or ""
        found.append(ServiceStatus(name, how, address, entry["pid"], entry["restarts"], entry["failed"] or ""))
    return found


def down(settings: Settings) -> int:
    """Ends everything of this project; returns how many processes had to be ended beside the supervisor."""
    with file_lock(settings.home / "services.lock"):
        state = _state(settings)
        if state and supervisor.alive(state["supervisor"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["supervisor"]["pid"], signal.SIGTERM)
            deadline = time.monotonic() + 20
            while supervisor.alive(state["supervisor"]) and time.monotonic() < deadline:
                time.sleep(0.1)
        return _clean(settings)


@contextmanager
def lease(settings: Settings) -> Iterator[None]:
    """While it is held the services do not end; it dies with its process."""
    path = supervisor.folder(settings.home) / "leases" / f"{os.getpid()}-{uuid.uuid4().hex[:6]}.json"
    write_json_atomic(path, supervisor.me())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def restart(settings: Settings, name: str, dead_pid: int | None) -> None:
    """Waits until a service that was found dead has been started again by the supervisor."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        entry = (_state(settings) or {}).get("services", {}).get(name)
        if entry and entry["pid"] != dead_pid and supervisor.alive(entry):
            break
        time.sleep(0.2)


def pid_of(settings: Settings, name: str) -> int | None:
    entry = (_state(settings) or {}).get("services", {}).get(name)
    return entry["pid"] if entry and supervisor.alive(entry) else None


# ----------------------------------------------------------------------------------------------------- details


def _external(settings: Settings, name: str) -> bool:
    """Services that the settings name are somebody else's to run."""
    return bool({"prefect": settings.prefect_api, "mlflow": settings.tracking_uri, "ray": settings.ray_address}.get(name))


def _state(settings: Settings) -> dict[str, Any] | None:
    return supervisor.read(supervisor.folder(settings.home) / "state.json")


def _supervised(settings: Settings) -> bool:
    state = _state(settings)
    return bool(state) and supervisor.alive(state["supervisor"])


def _start_supervisor(settings: Settings) -> None:
    log = settings.home / "logs" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | environment(settings) | {supervisor.MARK: str(settings.home)}
    with open(log, "ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "infra.supervisor", str(settings.home)],
            env=variables, cwd=settings.project, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 30
    while not _supervised(settings):
        if time.monotonic() > deadline:
            raise ServiceError(f"the supervisor did not start; see {log}\n{_tail(log)}")
        time.sleep(0.05)


def _clean(settings: Settings) -> int:
    """Removes every trace of services that ran: processes by their mark, files of the supervisor, Ray's session folder."""
    found = supervisor.sweep(settings.home)
    shutil.rmtree(supervisor.folder(settings.home), ignore_errors=True)
    shutil.rmtree(_ray_folder(settings), ignore_errors=True)
    return found


def _ray_folder(settings: Settings) -> Path:
    """Ray puts sockets below it, whose names may have 107 bytes: so not below the project."""
    import tempfile

    return Path(tempfile.gettempdir()) / f"tessera-{settings.identity}"


def _wanted(settings: Settings, name: str, extra: dict[str, list[str]]) -> dict[str, Any]:
    """What the supervisor needs to know to run a service."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT__", "RAY_JOB"))} | environment(settings)
    entry: dict[str, Any] = {"cwd": str(settings.project), "env": variables}
    if name == "prefect":
        port = _port(settings.prefect_port, "prefect_port", settings)
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        variables["PREFECT_API_URL"] = variables["PREFECT_UI_API_URL"] = f"http://127.0.0.1:{port}/api"
        variables["PREFECT_LOGGING_SERVER_LEVEL"] = "WARNING"
        return entry | {"argv": argv, "port": port, "address": f"http://127.0.0.1:{port}/api"}
    if name == "mlflow":
        port = _port(settings.mlflow_port, "mlflow_port", settings)
        argv = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", settings.store_uri, "--artifacts-destination", str(settings.artifacts),
        ]  # fmt: skip
        variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        return entry | {"argv": argv, "port": port, "address": f"http://127.0.0.1:{port}"}
    if name == "ray":
        return entry | _ray(settings, variables)
    variables["PREFECT_API_URL"] = addresses(settings).prefect or ""
    return entry | {"argv": extra[name], "port": None, "address": ""}


def _ray(settings: Settings, variables: dict[str, str]) -> dict[str, Any]:
    token = Path(variables["RAY_AUTH_TOKEN_PATH"])
    if not token.is_file():
        write_bytes_atomic(token, secrets.token_hex(32).encode())
        token.chmod(0o600)
    dashboard = _port(settings.dashboard_port, "dashboard_port", settings)
    port, agent, agent_grpc, runtime, metrics, client = (_free() for _ in range(6))
    head = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    argv = [
        head, "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--port={port}",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}",
        f"--temp-dir={_ray_folder(settings)}", f"--object-store-memory={200 * 1024 * 1024}",
    ]  # fmt: skip
    variables["RAY_DISABLE_IMPORT_WARNING"] = "1"
    return {"argv": argv, "port": port, "address": f"127.0.0.1:{port}", "dashboard": f"http://127.0.0.1:{dashboard}"}


def _port(wanted: int, setting: str, settings: Settings) -> int:
    """The port that is wanted; another free one if it is taken and nobody insisted on it."""
    if _is_free(wanted):
        return wanted
    if setting in settings.model_fields_set:
        raise ServiceError(f"port {wanted} (TESSERA_{setting.upper()}) is in use; stop what uses it or choose another")
    return _free()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(settings: Settings, name: str, on_progress: Callable[[str], None] | None) -> None:
    log = settings.home / "logs" / f"{name}.log"
    deadline = time.monotonic() + _DEADLINE
    while True:
        state = _state(settings)
        entry = (state or {}).get("services", {}).get(name)
        if entry and entry["failed"]:
            raise ServiceError(f"{name} {entry['failed']}; it printed:\n{_tail(log)}")
        if entry and supervisor.alive(entry) and _healthy(name, entry):
            if on_progress:
                on_progress(name)
            return
        if time.monotonic() > deadline:
            raise ServiceError(f"{name} was not ready after {_DEADLINE:.0f} s; it printed:\n{_tail(log)}")
        time.sleep(0.1)


def _healthy(name: str, entry: dict[str, Any]) -> bool:
    if name in ("prefect", "mlflow"):
        url = entry["address"] + "/health"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False
    if name == "ray":
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", entry["port"]), timeout=1):
            return True
        return False
    return True


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else "(nothing)"
