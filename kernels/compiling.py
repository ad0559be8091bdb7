"""How long kernels take to compile, while something else is timed."""

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event

import atlasvi.kernels.numba_cache  # noqa: F401  # before the first code that numba compiles


class CompileClock(event.Listener):
    """Counts the seconds in which numba or triton compile; what is found in their caches takes none.

    announce  called once, before (numba) or soon after (triton) the first compilation
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        self.seconds = 0.0
        self._announce: Callable[[], None] | None = announce
        self._depth, self._began = threading.local(), 0.0  # what is compiled may call what must be compiled first

    def on_start(self, event: Any) -> None:
        """numba begins to compile a function. Other threads wait for its lock, so only one compiles at a time."""
        self._depth.now = getattr(self._depth, "now", 0) + 1
        if self._depth.now == 1:
            self._began = time.monotonic()
            self._say()

    def on_end(self, event: Any) -> None:
        """numba has compiled a function."""
        self._depth.now = getattr(self._depth, "now", 1) - 1  # 1: it began before we listened
        if self._depth.now == 0:
            self.seconds += time.monotonic() - (self._began or time.monotonic())

    def take_triton(self, *, times: Any, cache_hit: bool, **others: Any) -> None:
        """triton has compiled a kernel, or found it in its cache."""
        if not cache_hit:
            self._say()
            self.seconds += times.total / 1e6

    def _say(self) -> None:
        announce, self._announce = self._announce, None
        if announce is not None:
            announce()


@contextmanager
def watch_compilation(announce: Callable[[], None], backend: str = "cpu") -> Iterator[CompileClock]:
    """Yields a clock that runs while kernels are compiled in the block, by any thread of this process.

    backend  of the kernels that will run: triton is watched, and loaded, only for its own
    """
    clock, knobs = CompileClock(announce), _find_triton_knobs() if backend == "triton" else None
    before = None if knobs is None else knobs.listener
    event.register("numba:compile", clock)

    def listen(**found: Any) -> None:
        clock.take_triton(**found)
        if before is not None:
            before(**found)

    if knobs is not None:
        knobs.listener = listen
    try:
        yield clock
    finally:
        event.unregister("numba:compile", clock)
        if knobs is not None:
            knobs.listener = before


def _find_triton_knobs() -> Any:
    """Where triton keeps its listener; None if its version has none."""
    try:
        return importlib.import_module("triton.knobs").compilation
    except (ImportError, AttributeError):
        return None
