"""The process that keeps a project's local services alive: starts what is wanted, restarts what died, ends when idle.

    python -m infra.supervisor HOME

It talks through files below HOME/services: `wanted/<name>.json` (argv, environment, port) says what to run, `state.json`
what runs. Its children die with it, and all of them and their children carry a mark in their environment by which
`sweep` finds whatever an unclean death left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.storage import write_json_atomic

MARK = "TESSERA_SERVICE_OF"
_TICK = 0.2
_PATIENCE = 8.0  # seconds between asking a service to end and ending it
_RESTARTS = 5
_PR_SET_PDEATHSIG = 1


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    started: float
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
    return bool(entry) and started(entry["pid"]) == entry["born"]


def me() -> dict[str, Any]:
    return {"pid": os.getpid(), "born": started(os.getpid())}


def read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def marked(home: Path) -> list[int]:
    """Every process that carries this project's mark, except the caller and its parents."""
    mark = f"{MARK}={home}".encode()
    spared = set(_ancestors())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in spared:
            continue
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0") and started(int(entry.name)) is not None:
                found.append(int(entry.name))
    return found


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
                write_json_atomic(self.folder / "state.json", json.loads(state))
                last = state
            if self._idle():
                break
            time.sleep(_TICK)
        for child in self.children.values():
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        with contextlib.suppress(OSError):
            (self.folder / "state.json").unlink()
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
                self._end(child)
                self.children[path.stem] = self._start(path.stem, wanted, text, [])
            elif child is None:
                self.children[path.stem] = self._start(path.stem, wanted, text, [])
            elif child.process.poll() is not None and path.stem not in self.failed:
                self._restart(path.stem, child, wanted, text)

    def _restart(self, name: str, child: _Child, wanted: dict[str, Any], text: str) -> None:
        now = time.monotonic()
        deaths = [death for death in child.deaths if now - death < 120] + [now]
        if len(deaths) > _RESTARTS:
            self.failed[name] = f"died {len(deaths)} times in two minutes (last exit code {child.process.returncode})"
            return
        time.sleep(min(2.0, 0.2 * 2 ** len(deaths)))
        self._collect(name)
        self.children[name] = self._start(name, wanted, text, deaths)

    def _collect(self, name: str) -> None:
        """What a dead service left behind (Ray's daemons outlive its head)."""
        mark = f"TESSERA_SERVICE={name}".encode()
        for pid in marked(self.home):
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)

    def _start(self, name: str, wanted: dict[str, Any], text: str, deaths: list[float]) -> _Child:
        log = self.home / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()

        def die_with_parent() -> None:
            ctypes.CDLL("libc.so.6").prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        with open(log, "ab") as output:
            process = subprocess.Popen(
                wanted["argv"],
                env=wanted["env"] | {MARK: str(self.home), "TESSERA_SERVICE": name},
                cwd=wanted["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return _Child(process, time.monotonic(), text, deaths)

    def _end(self, child: _Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(_PATIENCE)
        if child.process.poll() is None:
            child.process.kill()

    def _state(self) -> str:
        services = {}
        for name, child in self.children.items():
            pid = child.process.pid
            services[name] = {
                "pid": pid,
                "born": started(pid),
                "restarts": len(child.deaths),
                "failed": self.failed.get(name),
                **{k: v for k, v in json.loads(child.wanted).items() if k in ("port", "address", "dashboard")},
            }
        return json.dumps({"supervisor": me(), "services": services}, sort_keys=True)

    def _idle(self) -> bool:
        if (self.folder / "keep").exists() or any(alive(read(lease)) for lease in (self.folder / "leases").glob("*.json")):
            self.used = time.monotonic()
        settings = read(self.folder / "settings.json") or {}
        return time.monotonic() - self.used > 60 * settings.get("idle_minutes", 10.0)


def main() -> None:
    home = Path(sys.argv[1])
    Supervisor(home).run()


if __name__ == "__main__":
    main()
