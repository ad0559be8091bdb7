"""A sample of the cells, of each label in proportion, but no fewer than some: the same cells for the same seed."""

import numpy as np

from atlasvi.loaders.identity import mix64


def choose_sample(labels: np.ndarray, size: int, least: int, seed: int) -> np.ndarray:
    """Ascending int64 indices of about `size` of the cells; all of them if there are no more.

    labels  int [cells], below 0 for a cell without a label, which is never chosen
    least   cells of each label that are chosen at least, or all that it has; so the sample may be larger than `size`
    A cell is chosen by a hash of its index, so the choice needs no pass and is the same on every rank.
    """
    known = np.flatnonzero(labels >= 0)
    if len(known) <= size:
        return known
    counts = np.bincount(labels[known])
    wanted = np.minimum(counts, np.maximum(np.rint(size * counts / len(known)).astype(np.int64), least))
    order = np.lexsort((mix64(known, seed), labels[known]))  # by label, then by hash
    rank = np.arange(len(known)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(known[order][rank < np.repeat(wanted, counts)])
