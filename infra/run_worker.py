"""What runs inside Ray: the worker of a run, which outlives the process that asked for it, and the ranks of a training.

Whoever asks for work by the same key attaches to what goes on, so no body is started twice. The worker ends itself once
nothing runs and nobody has asked for a while: a driver that was killed leaves no CPU occupied for good.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.body import BodyFailed, Record, Seen, Tail, describe, perform, stored
from infra.storage import write_json_atomic

_POLL = 1.0  # seconds that a poll waits for news


class RunWorker:
    """Holds the bodies of one run, one at a time, in a process that keeps its imports. A Ray actor."""

    def __init__(self, imports: list[str], variables: dict[str, str], idle_seconds: float) -> None:
        os.environ.update(variables)
        self.lock = threading.Lock()
        self.key = ""
        self.job: threading.Thread | None = None
        self.records: dict[str, Record] = {}
        self.used = time.monotonic()
        for task, argument in ((self._import, imports), (self._leave_when_idle, idle_seconds)):
            threading.Thread(target=task, args=(argument,), daemon=True).start()

    def _import(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(Exception):  # the body will say it, where it matters
                importlib.import_module(name)

    def _leave_when_idle(self, seconds: float) -> None:
        while self._running() or time.monotonic() - self.used < seconds:
            time.sleep(1)
        os._exit(0)

    def _running(self) -> bool:
        return bool(self.job and self.job.is_alive())

    def ping(self) -> int:
        return os.getpid()

    def unused(self) -> float:
        """Seconds since anybody asked; 0 while a body runs."""
        return 0.0 if self._running() else time.monotonic() - self.used

    def ensure(self, key: str, target: str, kwargs: dict[str, Any], work: str, workers: int) -> str:
        """Idempotent: the first caller starts the body, every other one attaches. 'busy' while another key's body runs."""
        with self.lock:
            self.used = time.monotonic()
            if self._running():
                return "attached" if self.key == key else "busy"
            record = stored(Path(work))
            if record and record["key"] == key:
                return "attached"
            self.records.pop(key, None)
            self.key = key
            self.job = threading.Thread(target=self._body, args=(key, target, kwargs, work, workers), daemon=True)
            self.job.start()
            return "started"

    def _body(self, key: str, target: str, kwargs: dict[str, Any], work: str, workers: int) -> None:
        if workers > 1:
            kwargs = {"target": target, "kwargs": kwargs, "workers": workers, "folder": str(Path(work) / "ranks")}
            target = "infra.run_worker:train"
        with _output_to(Path(work) / "worker.log"):
            self.records[key] = perform(target, kwargs, key, Path(work))
        self.used = time.monotonic()

    def poll(self, key: str, work: str, seen: Seen) -> dict[str, Any]:
        """What is new, waited for a moment: {seen, news, alive, record}."""
        tail = Tail(Path(work), seen)
        deadline = time.monotonic() + _POLL
        while True:
            self.used = time.monotonic()
            running = self._running() and self.key == key  # asked before the record is read: it may end in between
            record = self.records.get(key) or stored(Path(work))
            record = record if record and record["key"] == key else None
            news = tail.news()
            if news or record or not running or time.monotonic() > deadline:
                return {"seen": tail.seen, "news": news, "alive": running, "record": record}
            time.sleep(0.02)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Everything that the process prints, also from native code, into a file."""
    with open(log, "a") as file:
        sys.stdout.flush(), sys.stderr.flush()
        before = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush(), sys.stderr.flush()
            for own, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, own)
                os.close(kept)


def train(target: str, kwargs: dict[str, Any], workers: int, folder: str) -> dict[str, Any]:
    """The same body in several processes with torch.distributed (nccl where every process has a GPU, else gloo); returns
    what the first one returned, raises BodyFailed with the error that came first."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    answers = Path(folder)
    shutil.rmtree(answers, ignore_errors=True)
    answers.mkdir(parents=True)
    gpu = ray.cluster_resources().get("GPU", 0) >= workers
    # Logical CPUs only place the processes; more processes than CPUs share them.
    cpu = min(1.0, int(100 * ray.available_resources().get("CPU", 0) / workers) / 100)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"target": target, "kwargs": kwargs, "answers": folder},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": max(cpu, 0.01), "GPU": int(gpu)}
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(storage_path=folder, name="train"),
    )
    failure: Exception | None = None
    try:
        trainer.fit()
    except Exception as error:
        failure = error
    errors = sorted(answers.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if errors:
        first = json.loads(errors[0].read_text())
        raise BodyFailed(first["kind"], first["message"], first["trace"], first["user_error"])
    if failure:
        raise failure
    return json.loads((answers / "result.json").read_text())


def _rank(config: dict[str, Any]) -> None:
    """One training process; torch.distributed is initialized, RANK and WORLD_SIZE are set."""
    from ray import train as ray_train

    rank = ray_train.get_context().get_world_rank()
    module, _, name = config["target"].partition(":")
    answers = Path(config["answers"])
    try:
        with _output_to(answers.parent / "worker.log"):
            returned = getattr(importlib.import_module(module), name)(**config["kwargs"])
    except Exception as error:
        write_json_atomic(answers / f"error-{rank}.json", describe(error))
        raise
    if rank == 0:
        write_json_atomic(answers / "result.json", returned)
