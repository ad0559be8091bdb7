"""Compiled functions that release the interpreter's lock, called by several threads at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_POOLS: dict[int, ThreadPoolExecutor] = {}


def run_on_threads(function: Callable[[int, int, int], None], n: int, n_threads: int) -> None:
    """Call function(thread, start, stop) for equal parts of range(n), on that many threads; waits for all."""
    n_threads = max(1, min(n_threads, n))
    edges = [n * k // n_threads for k in range(n_threads + 1)]
    if n_threads == 1:
        function(0, 0, n)
        return
    if n_threads not in _POOLS:
        _POOLS[n_threads] = ThreadPoolExecutor(n_threads - 1, thread_name_prefix="atlasvi-kernel")
    pool = _POOLS[n_threads]
    others = [pool.submit(function, k, edges[k], edges[k + 1]) for k in range(1, n_threads)]
    try:
        function(0, edges[0], edges[1])
    finally:
        for other in others:
            other.result()
