"""Exact search: every query is compared with every cell. What the index is measured against, and small stores use.

Cells are points whose Euclidean distance counts: by mean, their posterior means qzm; by posterior, qzm and sqrt(qzv)
beside each other. The latter is the 2-Wasserstein distance of the posteriors, which are normal with independent
dimensions (Givens and Shortt 1984, Michigan Math. J. 31:231, proposition 7):

    W(q, c)^2 = |qzm_q - qzm_c|^2 + |sqrt(qzv_q) - sqrt(qzv_c)|^2

It is never less than the distance of the means, and 0 only for the same posterior. (The expected squared distance of
draws from both was tried on OneK1K, and made the few cells of smallest variance everyone's neighbours: one cell was
among the 15 nearest of 636 of 1,500 cells, and at most of 18 by mean and 16 by W.)
"""

from collections.abc import Iterable

import numpy as np
from numba import njit

from atlasvi.engine.neighbours.ranking import (
    BLOCK,
    add_squares,
    has_within,
    is_worse,
    make_heaps,
    replace_worst,
    run_shares,
    sort_heaps,
)


def to_points(qzm: np.ndarray, qzv: np.ndarray, by_posterior: bool) -> np.ndarray:
    """The points of cells, float32 [cells, latent], or, by posterior, [cells, 2 * latent]."""
    return np.concatenate([qzm, np.sqrt(qzv)], axis=1) if by_posterior else qzm


class ExactSearch:
    """The k nearest cells of each query among cells that are added block by block; memory is that of the results.

    queries  float32 [queries, dimensions], as from `to_points`
    own      int64 [queries]: the cell that is not counted for each query, its own; -1: none. None: -1 for all
    """

    def __init__(self, queries: np.ndarray, k: int, own: np.ndarray | None = None) -> None:
        self._queries = np.ascontiguousarray(queries, np.float32)
        self._own = np.full(len(queries), -1) if own is None else own.astype(np.int64)
        self._heaps = make_heaps(len(queries), k)

    def add(self, points: np.ndarray, cells: np.ndarray) -> None:
        """Compare all queries with cells: their points, float32 [cells, dimensions], and indices, int64 [cells]."""
        points = np.ascontiguousarray(points, np.float32)

        def work(start: int, stop: int) -> None:
            here = slice(start, stop)
            distances, found = (part[here] for part in self._heaps)
            _compare(points, cells, self._queries[here], self._own[here], distances, found)

        run_shares(work, len(self._queries))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances float32 [queries, k], and cells int64 [queries, k], nearest first, equal ones by index.

        With fewer than k cells, the last places hold infinity and -1.
        """
        return sort_heaps(*self._heaps)


def search_exactly(
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray,
    k: int,
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The results of `ExactSearch` for cells in parts: (points, indices of cells)."""
    search = ExactSearch(queries, k, own)
    for part in parts:
        search.add(*part)
    return search.finish()


@njit(nogil=True, cache=True)
def _compare(
    points: np.ndarray,
    cells: np.ndarray,
    queries: np.ndarray,
    own: np.ndarray,
    distances: np.ndarray,
    found: np.ndarray,
) -> None:
    n_dimensions = points.shape[1]
    block, sums = np.empty((n_dimensions, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    nothing = np.zeros(BLOCK, np.float32)
    for first in range(0, len(points), BLOCK):
        n = min(BLOCK, len(points) - first)
        for i in range(n):
            for d in range(n_dimensions):
                block[d, i] = points[first + i, d]
        for query in range(len(queries)):
            add_squares(block, n, nothing, queries[query], sums)
            nearest, indices = distances[query], found[query]
            if has_within(sums, 0, n, nearest[0]):
                for i in range(n):
                    cell = cells[first + i]
                    if cell != own[query] and is_worse(nearest[0], indices[0], sums[i], cell):
                        replace_worst(nearest, indices, sums[i], cell)
