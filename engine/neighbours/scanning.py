"""The compiled loops over the lists of an index: cells are coded when it is built, and decoded when it is searched.

In list l, dimension d of a cell is low[l, d] + step[l, d] * code, with codes from 0 to 255.
"""

import numpy as np
from numba import njit

from atlasvi.engine.neighbours.ranking import BLOCK, add_products, has_within, is_worse, replace_worst


@njit(nogil=True, cache=True)
def widen_ranges(latents: np.ndarray, lists: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Widen the range of each list, low and high float32 [lists, latent], to hold its cells."""
    for i in range(len(latents)):
        number = lists[i]
        for d in range(latents.shape[1]):
            low[number, d] = min(low[number, d], latents[i, d])
            high[number, d] = max(high[number, d], latents[i, d])


@njit(nogil=True, cache=True)
def place_cells(
    latents: np.ndarray,
    first: int,
    lists: np.ndarray,
    low: np.ndarray,
    step: np.ndarray,
    places: np.ndarray,
    codes: np.ndarray,
    cells: np.ndarray,
) -> None:
    """Write cells first, first + 1, ... at the next free place of their lists.

    latents float32 [cells, latent], lists uint16 [cells]; places int64 [lists]: the next place
    """
    for i in range(len(latents)):
        number = lists[i]
        place = places[number]
        places[number] += 1
        cells[place] = first + i
        for d in range(latents.shape[1]):
            if step[number, d] > 0:
                code = (latents[i, d] - low[number, d]) / step[number, d] + np.float32(0.5)
                codes[place, d] = np.uint8(min(code, np.float32(255)))
            else:
                codes[place, d] = 0


@njit(nogil=True, cache=True)
def count_chosen(cells: np.ndarray, list_starts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """int64 [lists]: the chosen cells in each list; chosen bool [all cells]."""
    n = np.zeros(len(list_starts) - 1, np.int64)
    for number in range(len(n)):
        for place in range(list_starts[number], list_starts[number + 1]):
            n[number] += chosen[cells[place]]
    return n


@njit(nogil=True, cache=True)
def scan_lists(
    codes: np.ndarray,
    cells: np.ndarray,
    list_starts: np.ndarray,
    low: np.ndarray,
    step: np.ndarray,
    chosen: np.ndarray,
    queries: np.ndarray,
    own: np.ndarray,
    pairs: np.ndarray,
    pair_starts: np.ndarray,
    distances: np.ndarray,
    found: np.ndarray,
) -> None:
    """Compare queries with the cells of the lists that each searches; a list is decoded once for all of them.

    chosen        bool [all cells]: the cells that count; empty: all
    own           int64 [queries]: the cell that does not count for each query; -1: none
    pairs         int64: queries, by the lists that they search; pair_starts int64 [lists + 1]: where a list's begin
    distances, found  results (see ranking.py)
    With x = step * code and r = query - low, |r - x|^2 = |x|^2 - 2 r x + |r|^2: one multiplication for each dimension.
    Both are no longer than the list is wide, so that little cancels.
    """
    n_latent = codes.shape[1]
    block, weights = np.empty((n_latent, BLOCK), np.float32), np.empty(n_latent, np.float32)
    squares, sums, numbers = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int64)
    for number in range(len(list_starts) - 1):
        if pair_starts[number] == pair_starts[number + 1]:
            continue
        at, end = list_starts[number], list_starts[number + 1]
        while at < end:
            n = 0
            while at < end and n < BLOCK:
                cell = np.int64(cells[at])
                if len(chosen) == 0 or chosen[cell]:
                    square = np.float32(0)
                    for d in range(n_latent):
                        value = step[number, d] * np.float32(codes[at, d])
                        block[d, n] = value
                        square += value * value
                    squares[n], numbers[n] = square, cell
                    n += 1
                at += 1
            for place in range(pair_starts[number], pair_starts[number + 1]):
                query, away = pairs[place], np.float32(0)
                nearest, indices = distances[query], found[query]
                for d in range(n_latent):
                    difference = queries[query, d] - low[number, d]
                    away += difference * difference
                    weights[d] = np.float32(-2) * difference
                add_products(block, n, squares, weights, sums)
                if has_within(sums, 0, n, nearest[0] - away * np.float32(1 - 1e-6)):  # rounding
                    for i in range(n):
                        distance = max(sums[i] + away, np.float32(0))
                        if numbers[i] != own[query] and is_worse(nearest[0], indices[0], distance, numbers[i]):
                            replace_worst(nearest, indices, distance, numbers[i])
