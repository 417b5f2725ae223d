"""Independent work side by side: Ray tasks where the caller runs inside Ray, one after another elsewhere.

A task that dies with its process is tried again by Ray; what it raised itself is raised here as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_RETRIES = 3
_FEW = 2  # so few pieces are not worth starting processes for


def each(function: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B]]:
    """(index, result) of every item, in the order in which they end. `function` and items must be picklable."""
    ray = _inside_ray() if len(items) > _FEW else None
    if ray is None:
        for index, item in enumerate(items):
            yield index, function(item)
        return
    yield from _tasks(ray, function, items)


def ordered(function: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """The results in the order of the items."""
    return [result for _, result in sorted(each(function, items), key=lambda found: found[0])]


def _inside_ray() -> Any:
    """Ray, when this process is one of its workers; never started from here."""
    import sys

    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def _tasks(ray: Any, function: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B]]:
    total, free = (int(found().get("CPU", 0)) for found in (ray.cluster_resources, ray.available_resources))
    # The worker that waits here holds a processor that it does not use: the tasks share what is free.
    share = max(0.01, min(1.0, int(100 * free / max(total, 1)) / 100))
    remote = ray.remote(_call).options(num_cpus=share, max_retries=_RETRIES)
    reference = ray.put(function)
    waiting = list(enumerate(items))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2 * max(total, 1):  # bounded: results are taken as they come
                index, item = waiting.pop(0)
                running[remote.remote(reference, item)] = index
            done, _ = ray.wait(list(running), num_returns=1)
            for answer in done:
                index = running.pop(answer)
                try:
                    yield index, ray.get(answer)
                except ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, BaseException) else error) from None
    finally:
        for answer in running:
            ray.cancel(answer, force=True)


def _call(function: Callable[[A], B], item: A) -> B:
    return function(item)
