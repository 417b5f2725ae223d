"""The process that keeps a project's local services alive: starts what is wanted, restarts what died, ends when idle.

    python -m infra.supervisor HOME

It talks through files below HOME/services: `wanted/<name>.json` (argv, environment, port) says what to run, `state.json`
what runs. Its children die with it, and all of them and their children carry a mark in their environment by which
`sweep` finds whatever an unclean death left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.storage import write_json_atomic

MARK = "TESSERA_SERVICE_OF"
SERVICE = "TESSERA_SERVICE"
_TICK = 0.2
_PATIENCE = 5.0  # seconds between asking a service to end and ending it
_RESTARTS = 5
_SHOWN = ("port", "address", "dashboard", "request")  # what of a wanted service stands in the state
_PR_SET_PDEATHSIG = 1
_OF_RAY = re.compile(rb"^ray(::|-dashboard)|/ray/(core|dashboard|autoscaler|_private)/|ray\.util\.client")


@dataclass
class _Child:
    process: subprocess.Popen[bytes] | None  # None: there is no such program
    born: float | None
    wanted: str
    deaths: list[float] = field(default_factory=list)


def folder(home: Path) -> Path:
    return home / "services"


def started(pid: int) -> float | None:
    """When a process was started (clock ticks since boot); None if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else float(fields[19])


def alive(entry: dict[str, Any] | None) -> bool:
    """Whether the process that an entry {pid, born} was written for still runs (pids are used again)."""
    return entry is not None and entry["born"] is not None and started(entry["pid"]) == entry["born"]


def me() -> dict[str, Any]:
    return {"pid": os.getpid(), "born": started(os.getpid())}


def read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def leased(home: Path) -> bool:
    """Whether a living process holds a lease on the services."""
    return any(alive(read(lease)) for lease in (folder(home) / "leases").glob("*.json"))


def ray_folder(home: Path) -> Path:
    """Where Ray keeps logs and sockets. Names of sockets may have 107 bytes, so it is neither below the project nor
    below TMPDIR, which may be long and differ from one command to the next."""
    return Path("/tmp") / f"tessera-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"


def marked(home: Path, service: str = "") -> list[int]:
    """Every process of this project's services (or of one), except the caller and its parents: by the mark in its
    environment, or, where a process has overwritten that (Ray's agents set their title there), by the log files it
    holds open."""
    marks = {f"{MARK}={home}".encode(), *([f"{SERVICE}={service}".encode()] if service else [])}
    logs = str(ray_folder(home)) if service in ("", "ray") else ""
    spared = set(_ancestors())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared or started(int(entry.name)) is None:
            continue
        with contextlib.suppress(OSError):
            if marks <= set((entry / "environ").read_bytes().split(b"\0")) or (logs and _holds(entry, logs)):
                found.append(int(entry.name))
    return found


def _holds(process: Path, folder: str) -> bool:
    """Whether a process of Ray's own (not a driver, which is a person's) has a file below the folder open."""
    if not _OF_RAY.search((process / "cmdline").read_bytes()):
        return False
    return any(os.readlink(handle).startswith(folder) for handle in (process / "fd").iterdir())


def listens(home: Path, service: str, port: int) -> bool:
    """Whether a process of this service is the one that listens on a port of loopback."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    for pid in marked(home, service) if sockets else []:
        with contextlib.suppress(OSError):
            if any(os.readlink(handle) in sockets for handle in Path(f"/proc/{pid}/fd").iterdir()):
                return True
    return False


def _ancestors() -> list[int]:
    found, pid = [], os.getpid()
    while pid > 1:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            break
    return found


def sweep(home: Path) -> int:
    """Ends every marked process, asked first; returns how many there were."""
    found = marked(home)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _PATIENCE
    while marked(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in marked(home):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


class Supervisor:
    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, folder(home)
        self.children: dict[str, _Child] = {}
        self.stopping = False
        self.failed: dict[str, str] = {}
        self.used = time.monotonic()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        last = ""
        while not self.stopping:
            self._tend()
            state = self._state()
            if state != last:
                with contextlib.suppress(OSError):  # a full disk: tried again with the next tick
                    write_json_atomic(self.folder / "state.json", json.loads(state))
                    last = state
            if not self.folder.is_dir():  # the project was removed
                break
            if self._idle() and self._close():
                return
            time.sleep(_TICK)
        self._end_all()

    def _close(self) -> bool:
        """Ends everything while nobody can attach to it; False if somebody is about to."""
        with open(self.home / "services.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            if not self._idle():
                return False
            self._end_all()
        return True

    def _end_all(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / "state.json").unlink()
        for child in self.children.values():
            if child.process:
                child.process.terminate()
        sweep(self.home)

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _tend(self) -> None:
        for path in sorted((self.folder / "wanted").glob("*.json")):
            wanted = read(path)
            if wanted is None:
                continue
            child = self.children.get(path.stem)
            text = json.dumps(wanted, sort_keys=True)
            if child and child.wanted != text:  # asked for anew, differently
                self.failed.pop(path.stem, None)
                self._end(path.stem, child)
                self.children[path.stem] = self._start(path.stem, wanted, text, [])
            elif child is None:
                self.children[path.stem] = self._start(path.stem, wanted, text, [])
            elif path.stem not in self.failed and child.process and child.process.poll() is not None:
                self._restart(path.stem, child, wanted, text)

    def _restart(self, name: str, child: _Child, wanted: dict[str, Any], text: str) -> None:
        now = time.monotonic()
        deaths = [death for death in child.deaths if now - death < 120] + [now]
        if len(deaths) > _RESTARTS:
            code = child.process.returncode if child.process else None
            self.failed[name] = f"died {len(deaths)} times in two minutes (last exit code {code})"
            return
        time.sleep(min(2.0, 0.2 * 2 ** len(deaths)))
        self._collect(name)
        self.children[name] = self._start(name, wanted, text, deaths)

    def _collect(self, name: str) -> None:
        """What a dead service left behind (Ray's daemons and workers outlive its head)."""
        for pid in marked(self.home, name):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, name: str, wanted: dict[str, Any], text: str, deaths: list[float]) -> _Child:
        log = self.home / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()

        def die_with_parent() -> None:
            ctypes.CDLL("libc.so.6").prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        try:
            with open(log, "ab") as output:
                process = subprocess.Popen(
                    wanted["argv"],
                    env=wanted["env"] | {MARK: str(self.home), SERVICE: name},
                    cwd=wanted["cwd"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        except OSError as error:
            self.failed[name] = f"could not be started: {error}"
            return _Child(None, None, text, deaths)
        return _Child(process, started(process.pid), text, deaths)

    def _end(self, name: str, child: _Child) -> None:
        if child.process:
            child.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_PATIENCE)
            child.process.kill()
        self._collect(name)

    def _state(self) -> str:
        services = {}
        for name, child in self.children.items():
            services[name] = {
                "pid": child.process.pid if child.process else 0,
                "born": child.born,
                "restarts": len(child.deaths),
                "failed": self.failed.get(name),
                **{k: v for k, v in json.loads(child.wanted).items() if k in _SHOWN},
            }
        return json.dumps({"supervisor": me(), "services": services}, sort_keys=True)

    def _idle(self) -> bool:
        if (self.folder / "keep").exists() or leased(self.home):
            self.used = time.monotonic()
        path = self.folder / "settings.json"  # written anew by whoever attaches
        settings = read(path) or {}
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < time.monotonic() - self.used:
                self.used = time.monotonic()
        return time.monotonic() - self.used > 60 * settings.get("idle_minutes", 10.0)


def main() -> None:
    home = Path(sys.argv[1])
    Supervisor(home).run()


if __name__ == "__main__":
    main()
