"""The next batches, made in other processes while the trainer computes. `batch(step)` is the very same.

1. A `torch.utils.data.DataLoader` over steps: its workers make the batches, in order, up to `depth` ahead, and hand them
   over through shared memory. One thread here takes them from there and has the next one finished.
2. Batches of a stream are made in steps. What is stored is read here, once, whatever the number of workers; they decode
   and transform; what was not transformed comes as bytes and is made float here. Other batches are made by the workers.
3. An error is raised by the step that it belongs to. Asking for another step than the next one begins anew from there.
Absent on purpose: decoding in threads - small pictures hold Python's lock most of the time, and so does a trainer; each
would wait for the other. And prefetching of what depends on the weights (rollouts), or of tokens, which are only copied.
Shared memory is /dev/shm: a container needs room there for `depth` batches.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from components.data.stream import StreamBatches
from components.interfaces import Batches

Task = tuple[int | None, Any]  # a step (None: it could not be read), and what is stored of it


class Prefetch:
    """`batches`, made ahead by `workers` processes; about `depth` batches are ready or being made.

    Its processes end when it is closed, or when nobody holds it any more:

        with Prefetch(StreamBatches(stream, 64, seed=0), depth=8, workers=4) as batches:
            train(method, batches, ...)
    """

    def __init__(self, batches: Batches, *, depth: int = 4, workers: int = 2) -> None:
        self._batches = batches if isinstance(batches, StreamBatches) else _Whole(batches)
        self._steps = _Steps(self._batches)
        self._loader: DataLoader[Any] = DataLoader(
            _Made(self._batches),
            batch_size=None,
            sampler=self._steps,
            num_workers=workers,
            prefetch_factor=-(-depth // workers),
            generator=torch.Generator(),  # of its own: otherwise it takes numbers from the trainer's
        )
        self._made: Iterator[Any] | None = None
        self._thread: ThreadPoolExecutor | None = None  # the only user of the loader
        self._next = 0
        self._ready: Future[dict[str, Tensor]] | None = None  # the batch of step `_next`

    def batch(self, step: int) -> dict[str, Tensor]:
        if self._thread is None or self._ready is None or step != self._next:
            self.close()
            self._steps.begin(step)
            self._made = iter(self._loader)  # here: a process forked by the pool's thread could not end properly
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
            self._ready = self._thread.submit(self._take, step)
        ready, self._next = self._ready, step + 1
        self._ready = self._thread.submit(self._take, step + 1)
        return ready.result()

    def close(self) -> None:
        """Ends the processes and the thread; a later `batch` starts others."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._made = self._ready = self._thread = None  # the loader's workers end with its iterator

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, step: int) -> dict[str, Tensor]:
        assert self._made is not None
        made = next(self._made)
        error = self._steps.errors.pop(step, None) or made
        if isinstance(error, Exception):
            raise error
        return self._batches.finish(made)


class _Whole:
    """Batches that are not made in steps: the workers do it all."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def read(self, step: int) -> None:
        return None

    def make(self, step: int, stored: None) -> dict[str, Tensor]:
        return self.batches.batch(step)

    def finish(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        return made


class _Steps(Sampler[Task]):
    """The steps from some one on; what is stored of their batches is read here, in the trainer's process."""

    def __init__(self, batches: StreamBatches[Any] | _Whole) -> None:
        self.batches = batches
        self.begin(0)

    def begin(self, step: int) -> None:
        self.step = step
        self.errors: dict[int, Exception] = {}  # step -> why it could not be read

    def __iter__(self) -> Iterator[Task]:
        while True:
            try:
                task: Task = self.step, self.batches.read(self.step)
            except Exception as error:
                self.errors[self.step] = error
                task = None, None
            yield task
            self.step += 1


class _Made(Dataset[Any]):
    """Makes a batch, in a worker. An error is handed over as it is, not in the loader's words."""

    def __init__(self, batches: StreamBatches[Any] | _Whole) -> None:
        self.batches = batches

    def __getitem__(self, task: Task) -> dict[str, Tensor] | Exception | None:
        step, stored = task
        if step is None:
            return None
        try:
            return self.batches.make(step, stored)
        except Exception as error:
            return _portable(error)


def _portable(error: Exception) -> Exception:
    """The error with the way it took as a note; where it can't travel between processes, one that says the same."""
    way = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # its own, made just now
    except Exception:
        return RuntimeError(way)
    error.add_note(way)
    return error
