"""A sample of the cells, of each label in proportion, but no fewer than some: the same cells for the same seed."""

import numpy as np

from atlasvi.loaders.cells.coded_columns import count_codes
from atlasvi.loaders.identity import mix64

SLICE_CELLS = 2**20


def choose_sample(labels: np.ndarray, size: int, least: int, seed: int) -> np.ndarray:
    """Ascending int64 indices of about `size` of the cells; all of them if there are no more.

    labels  int [cells], below 0 for a cell without a label, which is never chosen
    least   cells of each label that are chosen at least, or all that it has; so the sample may be larger than `size`
    A cell is chosen by a hash of its index, so the choice needs no pass over counts and is the same on every rank.
    Memory is that of a slice of the cells and of the sample.
    """
    counts = count_codes(labels, int(labels.max(initial=-1)) + 1)
    n_known = int(counts.sum())
    if n_known <= size:
        return np.flatnonzero(labels >= 0)
    wanted = np.minimum(counts, np.maximum(np.rint(size * counts / n_known).astype(np.int64), least))
    found = np.zeros(0, np.int64)
    for start in range(0, len(labels), SLICE_CELLS):
        here = start + np.flatnonzero(labels[start : start + SLICE_CELLS] >= 0)
        found = _take_lowest(np.concatenate([found, here]), labels, wanted, seed)
    return np.sort(found)


def _take_lowest(cells: np.ndarray, labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Of each label at most `wanted` of the cells: those with the lowest hashes."""
    own = labels[cells].astype(np.int64)
    order = np.lexsort((mix64(cells, seed), own))  # by label, then by hash
    counts = np.bincount(own, minlength=len(wanted))
    rank = np.arange(len(cells)) - np.repeat(np.cumsum(counts) - counts, counts)
    return cells[order][rank < np.repeat(wanted, counts)]
