"""Where a body computes: in this process, in one warm Ray worker, or in several training processes.

The work is named by its key and its truth is the record in its work folder (`infra.body`). A Ray worker that holds the
body outlives the process that asked for it, so whoever asks again with the same key *attaches* to what goes on, or finds
the record, and no body runs twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra import services
from infra.body import BodyFailed, Record, Tail, finished, perform, result
from infra.run_worker import RunWorker
from infra.settings import Settings, environment

__all__ = ["BodyFailed", "Compute", "ComputeLost", "cancel", "connect", "launch", "release", "warm"]

NAMESPACE = "tessera"
_ATTEMPTS = 3
_ANSWER = 30.0  # seconds that a worker may take to answer while a body keeps its processors busy
_WARM = ("torch", "prefect", "flows.worker")  # what a new worker imports while nothing is asked of it yet

OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Compute:
    """`inline`: this process; `worker`: a warm Ray worker; `train`: `workers` processes with torch.distributed.
    `cpus` are logical (they place the worker); `gpus` None: one where the cluster has one."""

    mode: Literal["inline", "worker", "train"] = "worker"
    workers: int = 1
    cpus: float = 1.0
    gpus: float | None = None


class ComputeLost(RuntimeError):
    """Ray has no room, or it or its worker went away more often than it is worth trying again."""


def launch(
    target: str,
    kwargs: dict[str, Any],
    *,
    key: str,
    run: str,
    work: Path,
    settings: Settings,
    compute: Compute,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Runs `module:function(**kwargs)` once for this key and returns what it returned; attaches if it already runs.

    `on_progress` gets the content of `progress.json` when it changes, {"metrics": rows} for new lines of `metrics.jsonl`,
    and {"printed": lines} of what a worker prints. Raises BodyFailed with the body's own error, ComputeLost when Ray stays away."""
    work.mkdir(parents=True, exist_ok=True)
    record = finished(work, key)
    if record is None:
        if compute.mode == "inline":
            record = _inline(target, kwargs, key, work, on_progress)
        else:
            record = _on_ray(_Work(target, kwargs, key, run, work, settings, compute), on_progress)
    return result(record)


def _inline(target: str, kwargs: dict[str, Any], key: str, work: Path, on_progress: OnProgress) -> Record:
    """The body in this process's main thread; a second thread passes on what it reports."""
    ended = threading.Event()

    def follow() -> None:
        tail = Tail(work)
        last = False
        while not last:
            last = ended.wait(0.3)
            if news := tail.news():
                on_progress(news)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        return perform(target, kwargs, key, work)
    finally:
        ended.set()
        follower.join()


# --------------------------------------------------------------------------------------------------------- Ray


@dataclass(frozen=True)
class _Work:
    target: str
    kwargs: dict[str, Any]
    key: str
    run: str
    work: Path
    settings: Settings
    compute: Compute


_connected: tuple[str | None, tuple[int, float] | None] | None = None  # address and process of the head
_handles: dict[str, Any] = {}  # run -> its worker


def connect(settings: Settings) -> Any:
    """Ray, connected to the project's head (or the one the settings name); never to a private one in silence."""
    global _connected
    address = _prepared(settings)
    import ray

    head = services.process(settings, "ray")
    if ray.is_initialized():
        if _connected == (address, head):
            return ray
        disconnect()
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except ray.exceptions.AuthenticationError as error:
        raise ComputeLost(
            f"Ray at {address} refuses the token in {os.environ['RAY_AUTH_TOKEN_PATH']}: {error}"
        ) from None
    except RuntimeError as error:
        raise ConnectionError(f"Ray at {address} does not answer: {error}") from error
    _connected = (address, head)
    return ray


def _prepared(settings: Settings) -> str | None:
    """The address of the head. To be called before Ray is imported: it reads its variables and the token only then."""
    variables = environment(settings) | services.ray_variables(settings)
    os.environ.update({k: v for k, v in variables.items() if k.startswith("RAY_")})
    return services.ensure(settings, {"ray"}).ray


def disconnect() -> None:
    """Lets go of Ray. A driver whose head has died must: Ray ends its process after a minute."""
    global _connected
    import ray

    _handles.clear()
    _connected = None
    with contextlib.suppress(Exception):
        ray.shutdown()


def warm(run: str, settings: Settings, compute: Compute | None = None) -> None:
    """Creates the run's worker without waiting for it, so that its imports overlap with whatever comes next."""
    if run not in _handles:
        _handles[run] = _worker(run, settings, compute or Compute())


def _worker(run: str, settings: Settings, compute: Compute, imports: Sequence[str] = _WARM) -> Any:
    """The run's worker: the one that is there, or a new one. Any other of this run (older code, another way to compute)
    is ended first: they would hold its processors and write into the same folders."""
    ray = connect(settings)
    several = compute.mode == "train" and compute.workers > 1
    name = f"run-{run}-{'t' if several else 'w'}{_code(settings.project)}"
    _end(run, keep=name)
    gpus = 0.0 if several else min(1.0, ray.cluster_resources().get("GPU", 0)) if compute.gpus is None else compute.gpus
    variables = environment(settings) | {k: v for k, v in os.environ.items() if k.startswith("TESSERA_")}
    variables.pop("TESSERA_SERVICE", None)
    early = {"PYTHONPATH": variables["PYTHONPATH"], "OMP_NUM_THREADS": str(os.cpu_count())}
    early["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # the default of two seconds delays every report by as much
    early["RAY_TRAIN_V2_ENABLED"] = "1"
    options: dict[str, Any] = {
        "name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "max_concurrency": 8,
        "num_cpus": 0 if several else compute.cpus, "num_gpus": gpus, "runtime_env": {"env_vars": early},
    }  # fmt: skip
    idle = 60 * max(settings.idle_minutes, 0.1)
    return ray.remote(RunWorker).options(**options).remote(list(imports), variables, idle)


def _on_ray(work: _Work, on_progress: OnProgress) -> Record:
    _prepared(work.settings)
    import ray.exceptions

    lost = ""
    tail = Tail(work.work)
    for attempt in range(_ATTEMPTS):
        if attempt:
            on_progress({"note": f"lost the worker, starting again ({attempt})"})
        head = services.process(work.settings, "ray")
        try:
            return _follow(work, tail, on_progress)
        except (ray.exceptions.RayTaskError, ray.exceptions.AuthenticationError):
            raise
        except (ray.exceptions.RayError, ConnectionError) as error:
            lost = next(iter(str(error).splitlines()), type(error).__name__)
            _handles.pop(work.run, None)
            if services.process(work.settings, "ray") != head:
                disconnect()
                services.await_restart(work.settings, "ray", head)
            elif not isinstance(error, ray.exceptions.RayActorError):
                disconnect()
            if record := finished(work.work, work.key):
                return record
    raise ComputeLost(
        f"the worker of run '{work.run}' was lost {_ATTEMPTS} times (last: {lost}); what it printed is in "
        f"{work.work / 'worker.log'}, Ray's own messages in {work.settings.home / 'logs' / 'ray.log'}"
    )


def _follow(work: _Work, tail: Tail, on_progress: OnProgress) -> Record:
    """Starts the body or attaches to it, and passes on what it reports until there is a record. The worker does the
    reading; `tail` remembers how far it came."""
    ray = connect(work.settings)
    folder = str(work.work)
    several = work.compute.mode == "train" and work.compute.workers > 1
    actor = None if several else _handles.pop(work.run, None)
    actor = actor or _worker(work.run, work.settings, work.compute)
    _await_room(ray, actor, work.settings)
    asked = (work.key, work.target, work.kwargs, folder, work.compute.workers if several else 1)
    if ray.get(actor.ensure.remote(*asked), timeout=_ANSWER) == "busy":
        # One driver walks a run, so nobody wants the other body any more.
        _end(work.run)
        actor = _worker(work.run, work.settings, work.compute)
        _await_room(ray, actor, work.settings)
        ray.get(actor.ensure.remote(*asked), timeout=_ANSWER)
    while True:
        answer = actor.poll.remote(work.key, folder, tail.seen)
        for _ in _heartbeats(work.settings):
            if ray.wait([answer], timeout=2)[0]:
                break
        state = ray.get(answer)
        tail.seen = state["seen"]
        if state["news"]:
            on_progress(state["news"])
        if state["record"]:
            if not several:
                _handles[work.run] = actor
            return state["record"]
        if not state["alive"]:
            raise ConnectionError("the body ended without a record")


def _heartbeats(settings: Settings) -> Iterator[None]:
    """While the head is the one this process is connected to, and for as long as a worker may keep silent."""
    for _ in range(int(_ANSWER)):
        if _connected is None or services.process(settings, "ray") != _connected[1]:
            raise ConnectionError("Ray's head has died")
        yield
    raise ConnectionError(f"the worker has not answered for {2 * _ANSWER:.0f} s")


def _await_room(ray: Any, actor: Any, settings: Settings) -> None:
    """Waits for the worker's process. What idle workers of other runs hold is taken; else says who holds the machine."""
    answer = actor.ping.remote()
    if ray.wait([answer], timeout=5)[0]:
        ray.get(answer)
        return
    _release_idle()
    if ray.wait([answer], timeout=settings.pending_seconds)[0]:
        ray.get(answer)
        return
    free = ray.available_resources()
    ray.kill(actor, no_restart=True)  # it would still take the place when one becomes free
    holders = ", ".join(sorted(_run_of(name) for name in _workers())) or "none of this project"
    raise ComputeLost(
        f"no worker became free within {settings.pending_seconds:.0f} s ({free.get('CPU', 0):g} CPUs and "
        f"{free.get('GPU', 0):g} GPUs are free; held by the runs: {holders}); wait for those runs, or end one with "
        "`tessera cancel RUN`"
    )


def release(run: str, settings: Settings) -> None:
    """Ends the run's worker and lets go of Ray, if this process is connected; the records stay."""
    if _connected is not None:
        with contextlib.suppress(Exception):  # a head that is gone has no workers to end
            _end(run)
        disconnect()


def cancel(run: str, settings: Settings) -> bool:
    """Ends whatever computes for a run; true if there was something."""
    if services.addresses(settings).ray is None:
        return False
    connect(settings)
    try:
        return _end(run)
    finally:
        disconnect()


def _workers() -> list[str]:
    from ray.util import list_named_actors

    return [str(entry["name"]) for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE]


def _run_of(name: str) -> str:
    return name.removeprefix("run-").rpartition("-")[0]


def _end(run: str, keep: str = "") -> bool:
    import ray

    found = False
    for name in _workers():
        if _run_of(name) == run and name != keep:
            with contextlib.suppress(ValueError):  # ended in the meantime
                ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
                found = True
    return found


def _release_idle(seconds: float = 30.0) -> None:
    """Ends workers in which nothing runs and of which nobody has asked anything for a while."""
    import ray

    for name in _workers():
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            other = ray.get_actor(name, namespace=NAMESPACE)
            unused: Any = ray.get(other.unused.remote(), timeout=1)
            if unused > seconds:
                ray.kill(other, no_restart=True)


def _code(project: Path) -> str:
    """Marks the source that a worker imports: this product's, and the packages and modules of the project."""
    own = Path(__file__).resolve().parent.parent
    files = set(project.glob("*.py"))
    for package in {*(own / part for part in ("components", "flows", "infra")), *_packages(project)}:
        files.update(package.rglob("*.py"))
    marks = "".join(f"{path}{path.stat().st_mtime_ns}" for path in sorted(files))
    return hashlib.sha256(marks.encode()).hexdigest()[:8]


def _packages(project: Path) -> list[Path]:
    return [path.parent for path in project.glob("*/__init__.py") if not path.parent.name.startswith(".")]
