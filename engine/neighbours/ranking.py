"""Compiled loops that keep the k nearest of many cells for each query, on as many threads as there are cores.

They release the GIL and run on Python's threads: numba's own can't be entered by two threads of a program at a time.
The results of a query are a heap whose first entry is the worst, by distance, then by index. So the k nearest are the
same in whatever order cells are seen, also where distances are equal.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numba import njit

BLOCK = 256  # cells that are compared at a time: with 20 latents, their 20 kB stay in the first-level cache
NO_CELL = np.iinfo(np.int64).max  # in places that no cell has taken yet


def count_threads() -> int:
    """Number of cores that this process may use, or OMP_NUM_THREADS, as for torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(cores, int(limit)), 1) if limit.isdecimal() else cores


def run_shares(work: Callable[[int, int], object], n: int) -> None:
    """Call work(start, stop) for equal shares of range(n), each on its own thread."""
    n_shares = max(min(count_threads(), n), 1)
    shares = list(pairwise(n * share // n_shares for share in range(n_shares + 1)))
    if n_shares == 1:
        work(0, n)
        return
    with ThreadPoolExecutor(n_shares) as pool:
        for done in [pool.submit(work, *share) for share in shares]:
            done.result()


def make_heaps(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Results without cells: squared distances, float32 [n, k], infinite; and indices of cells, int64 [n, k]."""
    return np.full((n, k), np.inf, np.float32), np.full((n, k), NO_CELL, np.int64)


def sort_heaps(distances: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same results, nearest first, equal distances by index; places that no cell has taken hold -1, at the end."""
    order = np.lexsort((cells, distances), axis=1)
    distances, cells = (np.take_along_axis(values, order, 1) for values in (distances, cells))
    return distances, np.where(cells == NO_CELL, -1, cells)


@njit(inline="always")
def is_worse(distance: float, cell: int, other: float, other_cell: int) -> bool:
    """Whether the first result comes after the second."""
    return distance > other or (distance == other and cell > other_cell)


@njit(nogil=True, cache=True)
def replace_worst(distances: np.ndarray, cells: np.ndarray, distance: float, cell: int) -> None:
    """Put a result in place of the worst one of a heap."""
    place, k = 0, len(distances)
    while True:
        child = 2 * place + 1
        if child >= k:
            break
        if child + 1 < k and is_worse(distances[child + 1], cells[child + 1], distances[child], cells[child]):
            child += 1
        if not is_worse(distances[child], cells[child], distance, cell):
            break
        distances[place], cells[place] = distances[child], cells[child]
        place = child
    distances[place], cells[place] = distance, cell


@njit(nogil=True, cache=True, fastmath={"contract"})
def add_products(block: np.ndarray, n: int, start: np.ndarray, weights: np.ndarray, sums: np.ndarray) -> None:
    """start + weights @ block, for the first n cells of a block, into sums.

    block  float32 [latent, BLOCK]; weights float32 [latent]; start, sums float32 [BLOCK]
    """
    for i in range(n):
        sums[i] = start[i]
    d, n_latent = 0, len(weights)
    while d + 4 <= n_latent:  # four at a time: each sum is read and written a quarter as often
        a, b, c, e = weights[d], weights[d + 1], weights[d + 2], weights[d + 3]
        w, x, y, z = block[d], block[d + 1], block[d + 2], block[d + 3]
        for i in range(n):
            sums[i] += (a * w[i] + b * x[i]) + (c * y[i] + e * z[i])
        d += 4
    while d < n_latent:
        a, w = weights[d], block[d]
        for i in range(n):
            sums[i] += a * w[i]
        d += 1


@njit(nogil=True, cache=True, fastmath={"contract"})
def add_squares(block: np.ndarray, n: int, start: np.ndarray, point: np.ndarray, sums: np.ndarray) -> None:
    """start + the squared distances of a point from the first n cells of a block, into sums; arrays as above.

    From differences, so that nothing cancels: a cell's distance from itself is 0.
    """
    for i in range(n):
        sums[i] = start[i]
    d, n_latent = 0, len(point)
    while d + 4 <= n_latent:
        a, b, c, e = point[d], point[d + 1], point[d + 2], point[d + 3]
        w, x, y, z = block[d], block[d + 1], block[d + 2], block[d + 3]
        for i in range(n):
            p, q, r, s = w[i] - a, x[i] - b, y[i] - c, z[i] - e
            sums[i] += (p * p + q * q) + (r * r + s * s)
        d += 4
    while d < n_latent:
        a, w = point[d], block[d]
        for i in range(n):
            sums[i] += (w[i] - a) * (w[i] - a)
        d += 1


@njit(nogil=True, cache=True)
def has_within(sums: np.ndarray, start: int, stop: int, bound: float) -> bool:
    """Whether one of sums[start:stop] is at most `bound`. To count all is faster than to stop at the first."""
    n = 0
    for i in range(start, stop):
        n += sums[i] <= bound
    return n > 0
