"""The local services of a project: Prefect, MLflow, Ray and the worker of the deployments, all on loopback.

`tessera run` and `tessera up` go the same way: `ensure` starts what is missing under the project's supervisor and attaches
to what runs. What `run` started ends by itself once nobody has used it for a while; what `up` started stays until `down`.
"""

from __future__ import annotations

import contextlib
import os
import random
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
from collections.abc import Callable, Iterator, Set
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


class _PortTaken(ServiceError):
    """Somebody else has listened on the port of a service since it was found free."""


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
    own = {name for name in names if not _external(settings, name)}
    if not own:
        return addresses(settings)
    anew: set[str] = set()
    for attempt in range(4):
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
            with file_lock(settings.home / "services.lock"):
                requests = _ask(settings, own, extra or {}, idle, anew)
        except OSError as error:
            raise ServiceError(
                f"the services of {settings.home} cannot start: {error.strerror} ({error.filename})"
            ) from error
        try:
            _wait(settings, requests, on_progress)
            break
        except _PortTaken:
            if attempt == 3:
                raise
            anew = {name for name in own if _port_taken(settings, name)}
    return addresses(settings)


def _ask(
    settings: Settings, names: set[str], extra: dict[str, list[str]], idle: bool, anew: Set[str] = frozenset()
) -> dict[str, str]:
    """Tells the supervisor (a new one, if there is none) what is wanted; returns {name: identity of the request}. What is
    in `anew` gets another port."""
    base = supervisor.folder(settings.home)
    if not _supervised(settings):
        _clean(settings, keep_leases=True)
    base.mkdir(mode=0o700, exist_ok=True)  # the environments in it may hold credentials
    base.chmod(0o700)
    write_json_atomic(base / "settings.json", {"idle_minutes": settings.idle_minutes})
    if not idle:
        write_bytes_atomic(base / "keep", b"")
    if not _supervised(settings):
        _start_supervisor(settings)
    state = (_state(settings) or {}).get("services", {})
    requests = {}
    for name in sorted(names):
        path = base / "wanted" / f"{name}.json"
        wanted = supervisor.read(path)
        failed = wanted and state.get(name, {}).get("request") == wanted["request"] and state[name]["failed"]
        # `run` does without Ray's dashboard; `up` gives it one, unless that would end somebody's work.
        bare = (
            name == "ray" and wanted and not idle and not wanted["dashboard"] and not supervisor.leased(settings.home)
        )
        if wanted is None or failed or bare or name in anew:
            wanted = _wanted(settings, name, extra, dashboard=not idle) | {"request": uuid.uuid4().hex}
            write_json_atomic(path, wanted)
        requests[name] = wanted["request"]
    return requests


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
        healthy = not entry["failed"] and supervisor.alive(entry) and _healthy(settings, name, entry)
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
    supervisor.folder(settings.home).mkdir(mode=0o700, parents=True, exist_ok=True)
    path = supervisor.folder(settings.home) / "leases" / f"{os.getpid()}-{uuid.uuid4().hex[:6]}.json"
    write_json_atomic(path, supervisor.me())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def await_restart(settings: Settings, name: str, dead: tuple[int, float] | None) -> None:
    """Waits until the supervisor has started a service again that was found dead."""
    deadline = time.monotonic() + (1 if _external(settings, name) else 30)
    while time.monotonic() < deadline and _supervised(settings) and process(settings, name) in (None, dead):
        time.sleep(0.2)


def process(settings: Settings, name: str) -> tuple[int, float] | None:
    """(pid, time of its start) of a service of this project that runs."""
    entry = (_state(settings) or {}).get("services", {}).get(name)
    return (entry["pid"], entry["born"]) if entry and supervisor.alive(entry) else None


def ray_variables(settings: Settings) -> dict[str, str]:
    """What the head of this project and everyone who talks to it must agree on. Ray takes 127.0.0.1 for a mistake and
    listens on every interface, unless it is told that there is only one machine, as on a Mac."""
    return {} if settings.ray_address else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


# ----------------------------------------------------------------------------------------------------- details


def _external(settings: Settings, name: str) -> bool:
    """Services that the settings name are somebody else's to run."""
    return bool(
        {"prefect": settings.prefect_api, "mlflow": settings.tracking_uri, "ray": settings.ray_address}.get(name)
    )


def _state(settings: Settings) -> dict[str, Any] | None:
    return supervisor.read(supervisor.folder(settings.home) / "state.json")


def _supervised(settings: Settings) -> bool:
    state = _state(settings)
    return state is not None and supervisor.alive(state["supervisor"])


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


def _clean(settings: Settings, keep_leases: bool = False) -> int:
    """Removes every trace of services that ran: processes by their mark, files of the supervisor, Ray's session folder."""
    found = supervisor.sweep(settings.home)
    base = supervisor.folder(settings.home)
    for path in base.iterdir() if base.is_dir() else ():
        if path.is_dir() and not (keep_leases and path.name == "leases"):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir():
            path.unlink(missing_ok=True)
    if not keep_leases:
        shutil.rmtree(base, ignore_errors=True)
    shutil.rmtree(supervisor.ray_folder(settings.home), ignore_errors=True)
    return found


def _wanted(settings: Settings, name: str, extra: dict[str, list[str]], dashboard: bool) -> dict[str, Any]:
    """What the supervisor needs to know to run a service."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT__", "RAY_JOB"))} | environment(
        settings
    )
    entry: dict[str, Any] = {"cwd": str(settings.project), "env": variables}
    if name == "prefect":
        port = _port(settings.prefect_port, "prefect_port", settings)
        argv = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        variables["PREFECT_API_URL"] = variables["PREFECT_UI_API_URL"] = f"http://127.0.0.1:{port}/api"
        variables["PREFECT_LOGGING_SERVER_LEVEL"] = "WARNING"
        # a schedule made in the UI counts at once, not only after the minute that its scheduler sleeps
        variables["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "5"
        variables["PREFECT_API_BLOCKS_REGISTER_ON_START"] = (
            "false"  # a second of the first start, and nothing uses them
        )
        return entry | {"argv": argv, "port": port, "address": f"http://127.0.0.1:{port}/api"}
    if name == "mlflow":
        port = _port(settings.mlflow_port, "mlflow_port", settings)
        argv = [
            sys.executable, "-m", "infra.mlflow_store", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", settings.store_uri, "--artifacts-destination", str(settings.artifacts),
        ]  # fmt: skip
        variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        return entry | {"argv": argv, "port": port, "address": f"http://127.0.0.1:{port}"}
    if name == "ray":
        return entry | _ray(settings, variables, dashboard)
    variables["PREFECT_API_URL"] = addresses(settings).prefect or ""
    variables["PREFECT_WORKER_QUERY_SECONDS"] = "2"  # who presses Run in the UI waits for the worker to look
    return entry | {"argv": extra[name], "port": None, "address": ""}


def _ray(settings: Settings, variables: dict[str, str], dashboard: bool) -> dict[str, Any]:
    """The head: on loopback, with a token of the project's own, every port chosen so that two projects never meet."""
    _make_token(Path(variables["RAY_AUTH_TOKEN_PATH"]))
    folder = supervisor.ray_folder(settings.home)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServiceError(f"{folder} belongs to another user, and Ray needs it; have it removed")
    port, agent, agent_grpc, runtime, metrics, client = _free(6)
    shown = _port(settings.dashboard_port, "dashboard_port", settings) if dashboard else None
    head = shutil.which("ray", path=str(Path(sys.executable).parent)) or "ray"
    argv = [
        head, "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--port={port}",
        *(["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={shown}"] if shown else
          ["--include-dashboard=false", "--include-log-monitor=false"]), "--no-monitor",
        f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}",
        f"--temp-dir={folder}", f"--object-store-memory={200 * 1024 * 1024}",
    ]  # fmt: skip
    variables |= ray_variables(settings) | {"RAY_DISABLE_IMPORT_WARNING": "1"}
    variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # one machine: there is nowhere to move work to
    address = f"http://127.0.0.1:{shown}" if shown else None
    return {"argv": argv, "port": port, "address": f"127.0.0.1:{port}", "dashboard": address}


def _make_token(path: Path) -> None:
    """A secret that only this user can read, at no moment by anyone else."""
    if path.is_file() and path.stat().st_size:
        path.chmod(0o600)
        return
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _port(wanted: int, setting: str, settings: Settings) -> int:
    """The port that is wanted; another free one if it is taken and nobody insisted on it."""
    if _is_free(wanted):
        return wanted
    if setting in settings.model_fields_set:
        raise ServiceError(f"port {wanted} (TESSERA_{setting.upper()}) is in use; stop what uses it or choose another")
    return _free(1)[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free(count: int) -> list[int]:
    """Different free ports, below those that the system hands out by itself: nobody takes one before it is used."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20000, 32000)
        if port not in found and _is_free(port):
            found.append(port)
    return found


def _wait(settings: Settings, requests: dict[str, str], on_progress: Callable[[str], None] | None) -> None:
    """Until every service runs that was asked for; raises with what it printed when one does not."""
    left = set(requests)
    deadline = time.monotonic() + _DEADLINE
    while True:
        services = (_state(settings) or {}).get("services", {})
        for name in sorted(left):
            entry, log = services.get(name), settings.home / "logs" / f"{name}.log"
            if not entry or entry["request"] != requests[name]:
                continue
            if entry["failed"]:
                raise ServiceError(f"{name} {entry['failed']}; it printed:\n{_tail(log)}")
            if entry["restarts"] and _port_taken(settings, name):
                raise _PortTaken(f"another process took the port of {name}; it printed:\n{_tail(log)}")
            if supervisor.alive(entry) and _healthy(settings, name, entry):
                left.discard(name)
                if on_progress:
                    on_progress(name)
        if not left:
            return
        if not _supervised(settings):
            log = settings.home / "logs" / "supervisor.log"
            raise ServiceError(f"the supervisor of the services ended; it printed:\n{_tail(log)}")
        if time.monotonic() > deadline:
            name = min(left)
            log = settings.home / "logs" / f"{name}.log"
            raise ServiceError(f"{name} was not ready after {_DEADLINE:.0f} s; it printed:\n{_tail(log)}")
        time.sleep(0.1)


def _healthy(settings: Settings, name: str, entry: dict[str, Any]) -> bool:
    if name in ("prefect", "mlflow"):
        url = entry["address"] + "/health"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200 and supervisor.listens(settings.home, name, entry["port"])
        except (OSError, urllib.error.URLError):
            return False
    if name == "ray":
        # The head answers before its node can take work: both have to be there.
        raylet = supervisor.ray_folder(settings.home) / "session_latest" / "sockets" / "raylet"
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", entry["port"]), timeout=1),
            socket.socket(socket.AF_UNIX) as node,
        ):
            node.connect(str(raylet.resolve()))
            return True
        return False
    # Of any other it is only known that it runs; one that cannot run has ended within a second.
    age = float(Path("/proc/uptime").read_text().split()[0]) - entry["born"] / os.sysconf("SC_CLK_TCK")
    return age > 1.0


def _port_taken(settings: Settings, name: str) -> bool:
    """Whether not the service but somebody else listens on its port: two projects that started at once chose the same."""
    entry = (_state(settings) or {}).get("services", {}).get(name)
    if name not in ("prefect", "mlflow") or not entry:
        return False
    return not _is_free(entry["port"]) and not supervisor.listens(settings.home, name, entry["port"])


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else "(nothing)"
