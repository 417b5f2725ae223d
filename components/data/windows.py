"""What a stream reads from just now: the shards of the windows in use, and of the next one, read ahead.

1. Asking for a window loads its shards (several at a time, in threads) and starts loading those of the window after it, so
   that whoever reads on in order finds everything there.
2. At most `KEPT` windows stay, the last ones asked for: the one that ends, the one in use, the one to come. A shard that
   two of them hold (at the turn of an epoch) is loaded once.
3. What could not be read ahead is tried again when it is needed; only then its error is raised.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from components.data.order import Shuffle

T = TypeVar("T")
KEPT = 3  # windows
_AT_ONCE = 4  # shards loaded side by side


class Windows(Generic[T]):
    """Shards by number, as `load` makes them. Any number of threads may ask at the same time."""

    def __init__(self, order: Shuffle, load: Callable[[int], T]) -> None:
        self.order, self.load = order, load
        self._begin()

    def __reduce__(self) -> tuple[object, ...]:
        return Windows, (self.order, self.load)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._recent: OrderedDict[tuple[int, int], None] = OrderedDict()  # windows, the last used at the end
        self._loaded: dict[int, Future[T]] = {}
        self._last: tuple[tuple[int, int] | None, dict[int, T]] = (None, {})
        self._pool: ThreadPoolExecutor | None = None

    def held(self) -> list[int]:
        """The shards that are loaded or on their way."""
        return list(self._loaded)

    def of(self, epoch: int, window: int) -> dict[int, T]:
        """Every shard of this window. Raises what `load` raises."""
        if self._process != os.getpid():  # a forked process has none of its parent's threads
            self._begin()
        used = (epoch, window)
        last, found = self._last
        if used == last:  # nearly always: a window has many batches
            return found
        with self._lock:
            ahead = self.order.after(*used)
            needed = self._shards(used)
            for shard in needed:
                self._start(shard, again=True)
            for shard in self._shards(ahead):
                self._start(shard, again=False)
            self._keep(used, ahead)
            futures = {shard: self._loaded[shard] for shard in needed}
        found = {shard: future.result() for shard, future in futures.items()}
        self._last = (used, found)
        return found

    def _shards(self, window: tuple[int, int]) -> list[int]:
        return self.order.windows(window[0])[window[1]].tolist()

    def _start(self, shard: int, again: bool) -> None:
        found = self._loaded.get(shard)
        if found is None or (again and found.done() and found.exception() is not None):
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shards")
            self._loaded[shard] = self._pool.submit(self.load, shard)

    def _keep(self, *windows: tuple[int, int]) -> None:
        for window in windows:
            self._recent[window] = None
            self._recent.move_to_end(window)
        while len(self._recent) > KEPT:
            self._recent.popitem(last=False)
        kept = {shard for window in self._recent for shard in self._shards(window)}
        for shard in self._loaded.keys() - kept:
            del self._loaded[shard]
