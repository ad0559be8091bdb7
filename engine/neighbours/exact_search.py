"""Exact search: every query is compared with every cell. What the index is measured against, and small stores use.

The squared distance of a query q from a cell c is that of their posterior means, or, by posterior, its expectation over
both posteriors, which are normal with independent dimensions (Gullo and Tagarelli 2012, PVLDB 5:610, section 3):

    E |z_q - z_c|^2 = |qzm_q - qzm_c|^2 + sum(qzv_q) + sum(qzv_c)

so of two cells at the same distance, the one whose position is known better is nearer. The sum of a cell's variances is
its `spread` here.
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


class ExactSearch:
    """The k nearest cells of each query among cells that are added block by block; memory is that of the results.

    queries  float32 [queries, latent]
    own      int64 [queries]: the cell that is not counted for each query, its own; -1: none. None: -1 for all
    """

    def __init__(self, queries: np.ndarray, k: int, own: np.ndarray | None = None) -> None:
        self._queries = np.ascontiguousarray(queries, np.float32)
        self._own = np.full(len(queries), -1) if own is None else own.astype(np.int64)
        self._heaps = make_heaps(len(queries), k)

    def add(self, latents: np.ndarray, cells: np.ndarray, spreads: np.ndarray | None = None) -> None:
        """Compare all queries with cells: latents float32 [cells, latent], cells int64: their indices.

        spreads  float32 [cells], added to the squared distances; None: nothing is
        """
        latents = np.ascontiguousarray(latents, np.float32)
        spreads = np.zeros(len(latents), np.float32) if spreads is None else spreads.astype(np.float32)

        def work(start: int, stop: int) -> None:
            here = slice(start, stop)
            distances, found = (part[here] for part in self._heaps)
            _compare(latents, cells, spreads, self._queries[here], self._own[here], distances, found)

        run_shares(work, len(self._queries))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances float32 [queries, k], and cells int64 [queries, k], nearest first, equal ones by index.

        With fewer than k cells, the last places hold infinity and -1.
        """
        return sort_heaps(*self._heaps)


def search_exactly(
    parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    queries: np.ndarray,
    k: int,
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The results of `ExactSearch` for cells in parts: (latents, indices of cells, spreads or None)."""
    search = ExactSearch(queries, k, own)
    for part in parts:
        search.add(*part)
    return search.finish()


@njit(nogil=True, cache=True)
def _compare(
    latents: np.ndarray,
    cells: np.ndarray,
    spreads: np.ndarray,
    queries: np.ndarray,
    own: np.ndarray,
    distances: np.ndarray,
    found: np.ndarray,
) -> None:
    n_latent = latents.shape[1]
    block, sums = np.empty((n_latent, BLOCK), np.float32), np.empty(BLOCK, np.float32)
    for first in range(0, len(latents), BLOCK):
        n = min(BLOCK, len(latents) - first)
        for i in range(n):
            for d in range(n_latent):
                block[d, i] = latents[first + i, d]
        for query in range(len(queries)):
            add_squares(block, n, spreads[first : first + n], queries[query], sums)
            nearest, indices = distances[query], found[query]
            if has_within(sums, 0, n, nearest[0]):
                for i in range(n):
                    cell = cells[first + i]
                    if cell != own[query] and is_worse(nearest[0], indices[0], sums[i], cell):
                        replace_worst(nearest, indices, sums[i], cell)
