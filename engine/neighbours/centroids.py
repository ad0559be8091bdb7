"""Centroids of a sample of cells, in two levels, and a near centroid for every cell.

k-means (Lloyd's iterations) first finds groups, then divides each group into lists. A cell is compared with the groups
and with 256 lists, those of its group and of the groups around, not with all: the list it gets is nearly always the
nearest.
"""

import numpy as np
from numba import njit

from atlasvi.engine.neighbours.ranking import BLOCK, add_products, has_within, run_shares

ITERATIONS = 6
MOST_LISTS = 2**14
CELLS_PER_LIST = 1200
SAMPLE_PER_LIST = 32
STRIDE = 64  # sums looked at together for one that is smaller than the smallest so far


class Centroids:
    """The centroids of lists of cells.

    lists   float32 [lists, latent]; those of a group are beside each other, at most BLOCK
    groups  float32 [groups, latent], at most BLOCK
    starts  int64 [groups + 1]: the first list of each group
    """

    def __init__(self, lists: np.ndarray, groups: np.ndarray, starts: np.ndarray) -> None:
        self.lists, self.groups = lists, groups
        nearest = np.argsort((groups**2).sum(1) - 2 * groups @ groups.T, axis=1, kind="stable")
        around = [np.concatenate([np.arange(*starts[g : g + 2]) for g in row])[:BLOCK] for row in nearest]
        self._around = np.array(around, np.uint16)
        self._blocks = np.stack([_to_block(lists[here]) for here in self._around])

    def assign(self, latents: np.ndarray) -> np.ndarray:
        """uint16 [cells]: a list for each cell, nearly always the nearest; latents float32 [cells, latent]."""
        found, groups = np.empty(len(latents), np.uint16), _to_block(self.groups)[None]
        every = np.arange(len(self.groups), dtype=np.uint16)[None]

        def work(start: int, stop: int) -> None:
            part, group = latents[start:stop], np.zeros(stop - start, np.uint16)
            if len(self.groups) > 1:
                _find_nearest(part, group, np.arange(len(part)), groups, every, group)
            # cells of a group in turn, so that its block stays in the cache: 9 s for ten million cells instead of 13 s
            order = np.argsort(group, kind="stable")
            _find_nearest(part, group, order, self._blocks, self._around, found[start:stop])

        run_shares(work, len(latents))
        return found


def choose_n_lists(n_cells: int, cells_per_list: int = CELLS_PER_LIST) -> int:
    """About so many cells in a list, and at most 16,384 lists."""
    return int(np.clip(n_cells // cells_per_list, 1, MOST_LISTS))


def train_centroids(sample: np.ndarray, n_lists: int, seed: int) -> Centroids:
    """Centroids of about n_lists lists; sample float32 [cells, latent], in random order."""
    random = np.random.default_rng(seed)
    groups = _find_means(sample[: 2**16], min(round(2 * n_lists**0.5), BLOCK), random)
    group_of = Centroids(groups, groups[:1], np.array([0, len(groups)])).assign(sample)
    order = np.argsort(group_of, kind="stable")
    parts: list[np.ndarray] = []
    for members in np.split(order, np.searchsorted(group_of[order], np.arange(1, len(groups)))):
        wanted = round(n_lists * len(members) / len(sample))
        parts.append(_find_means(sample[members], wanted, random) if len(members) else groups[[len(parts)]])
    return Centroids(np.concatenate(parts), groups, np.cumsum([0, *map(len, parts)]))


def _find_means(points: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """float32 [at most k, latent]: k-means; a mean that loses its points begins again at a random one."""
    k = min(max(k, 1), BLOCK, len(points))
    means = points[random.choice(len(points), k, replace=False)]
    for _ in range(ITERATIONS):
        nearest = Centroids(means, means[:1], np.array([0, k])).assign(points)
        sizes = np.bincount(nearest, minlength=k)
        sums = np.stack([np.bincount(nearest, column, k) for column in points.T], axis=1)
        means = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
        means[sizes == 0] = points[random.integers(len(points), size=int((sizes == 0).sum()))]
    return means


def _to_block(points: np.ndarray) -> np.ndarray:
    """float32 [latent + 1, BLOCK]: at most BLOCK points [points, latent], and a row of their squared lengths."""
    block = np.full((points.shape[1] + 1, BLOCK), np.inf, np.float32)
    block[:-1, : len(points)], block[-1, : len(points)] = points.T, (points**2).sum(1)
    return block


@njit(nogil=True, cache=True)
def _find_nearest(
    latents: np.ndarray,
    group: np.ndarray,
    order: np.ndarray,
    blocks: np.ndarray,
    numbers: np.ndarray,
    found: np.ndarray,
) -> None:
    """For each cell, the number of the nearest point in the block of its group.

    order    int64 [cells]: in which cells are visited
    blocks   float32 [groups, latent + 1, BLOCK], as from `_to_block`; numbers uint16 [groups, points]
    found    uint16 [cells], for the result; may be `group`
    """
    n, n_latent = numbers.shape[1], latents.shape[1]
    sums, weights = np.empty(BLOCK, np.float32), np.empty(n_latent, np.float32)
    for cell in order:
        block = blocks[group[cell]]
        for d in range(n_latent):
            weights[d] = np.float32(-2) * latents[cell, d]
        add_products(block[:n_latent], n, block[n_latent], weights, sums)
        best, place = np.inf, 0
        for start in range(0, n, STRIDE):
            stop = min(start + STRIDE, n)
            if has_within(sums, start, stop, best):
                for i in range(start, stop):
                    if sums[i] < best:
                        best, place = sums[i], i
        found[cell] = numbers[group[cell], place]
