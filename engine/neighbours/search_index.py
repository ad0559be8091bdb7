"""Search an index: the lists whose centroids are nearest to a query, as many as the wanted recall takes."""

from dataclasses import dataclass

import numpy as np

from atlasvi.engine.neighbours.index_file import IndexFile
from atlasvi.engine.neighbours.ranking import make_heaps, run_shares, sort_heaps
from atlasvi.engine.neighbours.scanning import count_chosen, scan_lists

QUERIES_AT_ONCE = 4096  # whose distances from all centroids are in memory


@dataclass(frozen=True)
class Probing:
    """How many lists are searched for a query, and which share of the true neighbours that finds."""

    n_lists: int
    recall: float


def choose_probing(index: IndexFile, k: int, recall: float) -> Probing:
    """The fewest lists that reach a recall for k neighbours, by what was measured when the index was built.

    For more neighbours than were measured, lists grow in proportion. If no measured number of lists reaches the recall,
    the number is taken from which on it no longer grows: the rest is due to the codes, not to lists left out.
    """
    header = index.header
    row = min(int(np.searchsorted(header.ks, k)), len(header.ks) - 1)
    measured = np.maximum.accumulate(header.recalls[row])
    wanted = min(recall, measured[-1] - 0.001)
    place = int(np.argmax(measured >= wanted))
    lists, reached = float(header.probes[place]), float(measured[place])
    if place and reached > wanted:  # recall is nearly linear in the logarithm of the number of lists
        fraction = (wanted - measured[place - 1]) / (measured[place] - measured[place - 1])
        lists = header.probes[place - 1] * (header.probes[place] / header.probes[place - 1]) ** fraction
        reached = float(wanted)
    n_lists = int(np.ceil(lists * max(k / header.ks[row], 1)))
    return Probing(min(n_lists, header.n_lists), reached)


def search_index(
    index: IndexFile,
    queries: np.ndarray,
    k: int,
    *,
    n_lists: int,
    own: np.ndarray | None = None,
    chosen: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances float32 [queries, k], and cells int64 [queries, k], as from `ExactSearch.finish`.

    n_lists       lists that are searched for each query, at least; if cells are chosen, lists with none do not count,
                  and lists are added until they hold as many chosen cells as n_lists lists on average
    own           int64 [queries]: the cell that does not count for each query; -1: none
    chosen        bool [cells]: the cells that count; None: all
    Distances are those of the codes: of a cell in 256 steps of its list's width in each dimension.
    Raises SourceError if a list is damaged.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    own = np.full(len(queries), -1) if own is None else np.asarray(own, np.int64)
    distances, found = make_heaps(len(queries), k)
    if chosen is None:
        mask, sizes = np.empty(0, bool), np.diff(index.starts)
    else:
        index.check_lists(np.arange(index.header.n_lists))
        mask, sizes = chosen, count_chosen(index.cells, index.starts, chosen)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        here = slice(start, start + QUERIES_AT_ONCE)
        query_numbers, lists = _choose_lists(index, queries[here], sizes, n_lists, k + 1)
        index.check_lists(np.unique(lists))
        _scan(index, queries[here], own[here], mask, query_numbers, lists, distances[here], found[here])
    return sort_heaps(distances, found)


def _choose_lists(
    index: IndexFile, queries: np.ndarray, sizes: np.ndarray, n_lists: int, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a query and a list that it searches, as two int64 arrays, by query.

    sizes  int64 [lists]: the cells of each list that count
    least  number of cells that the lists of each query hold together, if there are so many
    """
    filled = np.flatnonzero(sizes)
    n_lists = min(n_lists, len(filled))
    centroids, counts = index.centroids[filled], sizes[filled]
    away = (centroids**2).sum(1) - 2 * queries @ centroids.T
    if sizes.sum() == len(index.cells):
        nearest = np.argpartition(away, n_lists - 1, axis=1)[:, :n_lists]
        if counts[nearest].sum(1).min(initial=least) >= least:
            return np.repeat(np.arange(len(queries)), n_lists), filled[nearest].ravel()
    order = np.argsort(away, axis=1)
    seen = np.cumsum(counts[order], axis=1) - counts[order]
    needed = max(n_lists * sizes.sum() / len(sizes), least)
    searched = (seen < needed) | (np.arange(len(filled)) < n_lists)
    return np.nonzero(searched)[0], filled[order[searched]]


def _scan(
    index: IndexFile,
    queries: np.ndarray,
    own: np.ndarray,
    mask: np.ndarray,
    query_numbers: np.ndarray,
    lists: np.ndarray,
    distances: np.ndarray,
    found: np.ndarray,
) -> None:
    """Search the lists of these pairs; each thread has a share of the queries."""

    def work(start: int, stop: int) -> None:
        first, last = np.searchsorted(query_numbers, [start, stop])
        order = np.argsort(lists[first:last], kind="stable")
        starts = np.searchsorted(lists[first:last][order], np.arange(index.header.n_lists + 1))
        pairs = query_numbers[first:last][order] - start
        here = slice(start, stop)
        arrays = index.codes, index.cells, index.starts, index.low, index.step, mask
        scan_lists(*arrays, queries[here], own[here], pairs, starts, distances[here], found[here])

    run_shares(work, len(queries))
