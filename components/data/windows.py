"""What a stream reads from just now: the shards of the windows in use, and of the next one, read ahead.

1. Asking for a window loads its units (several at a time, in threads) and starts loading those of the window after it, so
   that whoever reads on in order finds everything there. A unit is a shard, or all shards of a window together.
2. At most `KEPT` windows stay, the last ones asked for: the one that ends, the one in use, the one to come. A unit that
   two of them hold (at the turn of an epoch) is loaded once.
3. What could not be read ahead is tried again when it is needed; only then its error is raised.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from components.data.order import Shuffle

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
KEPT = 3  # windows
_AT_ONCE = 4  # units loaded side by side


def each(shards: np.ndarray) -> list[int]:
    """Every shard of a window by itself."""
    return shards.tolist()


def together(shards: np.ndarray) -> list[tuple[int, ...]]:
    """All shards of a window as one."""
    return [tuple(shards.tolist())]


class Windows(Generic[K, T]):
    """Units of windows as `load` makes them; `units` says which a window has. Any number of threads may ask at once."""

    def __init__(self, order: Shuffle, load: Callable[[K], T], units: Callable[[np.ndarray], list[K]]) -> None:
        self.order, self.load, self.units = order, load, units
        self._begin()

    def __reduce__(self) -> tuple[object, ...]:
        return Windows, (self.order, self.load, self.units)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[int, int], None] = OrderedDict()  # windows, the last used at the end
        self._loaded: dict[K, Future[T]] = {}
        self._last: tuple[tuple[int, int] | None, dict[K, T]] = (None, {})
        self._pool: ThreadPoolExecutor | None = None

    def held(self) -> list[K]:
        """The units that are loaded or on their way."""
        return list(self._loaded)

    def of(self, epoch: int, window: int) -> dict[K, T]:
        """Every unit of this window. Raises what `load` raises."""
        if self._process != os.getpid():  # a forked process has none of its parent's threads
            self._begin()
        used = (epoch, window)
        last, found = self._last
        if used == last:  # nearly always: a window has many batches
            return found
        with self._lock:
            ahead = self.order.after(*used)
            needed = self._units(used)
            for unit in needed:
                self._start(unit, again=True)
            for unit in self._units(ahead):
                self._start(unit, again=False)
            self._keep(used, ahead)
            futures = {unit: self._loaded[unit] for unit in needed}
        found = {unit: future.result() for unit, future in futures.items()}
        self._last = (used, found)
        return found

    def _units(self, window: tuple[int, int]) -> list[K]:
        return self.units(self.order.windows(window[0])[window[1]])

    def _start(self, unit: K, again: bool) -> None:
        found = self._loaded.get(unit)
        if found is None or (again and found.done() and found.exception() is not None):
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shards")
            self._loaded[unit] = self._pool.submit(self.load, unit)

    def _keep(self, *windows: tuple[int, int]) -> None:
        for window in windows:
            self._recent[window] = None
            self._recent.move_to_end(window)
        while len(self._recent) > KEPT:
            self._recent.popitem(last=False)
        kept = {unit for window in self._recent for unit in self._units(window)}
        for unit in self._loaded.keys() - kept:
            del self._loaded[unit]
