"""Labels of all cells in the narrowest dtype, and the cells of some labels without a list of them.

A label of a cell takes a byte where there are few groups; a list of the cells of a group would take eight for each.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Generator

from atlasvi.engine.queries.draw_comparison import draw_integers
from atlasvi.loaders.cells.coded_columns import SLICE_CELLS


class Members:
    """The cells that have one of some labels, in ascending order.

    labels  unsigned integers [cells]
    chosen  bool [labels]
    """

    def __init__(self, labels: np.ndarray, chosen: np.ndarray) -> None:
        self._labels, self._chosen = labels, chosen
        sizes = [np.count_nonzero(chosen[labels[at : at + SLICE_CELLS]]) for at in range(0, len(labels), SLICE_CELLS)]
        self._edges = np.cumsum([0, *sizes])  # members before each slice of cells

    @classmethod
    def of(cls, indices: np.ndarray, n_cells: int) -> Self:
        """The cells with these indices."""
        labels = np.zeros(n_cells, np.uint8)
        labels[indices] = 1
        return cls(labels, np.array([False, True]))

    def __len__(self) -> int:
        return int(self._edges[-1])

    def to_indices(self) -> np.ndarray:
        """int64: the indices of all members."""
        return np.flatnonzero(self._chosen[self._labels])

    def take(self, places: np.ndarray) -> np.ndarray:
        """int64 [n]: `to_indices()[places]`, for places int [n] in any order."""
        found = np.empty(len(places), np.int64)
        slices = np.searchsorted(self._edges, places, side="right") - 1
        for number in np.unique(slices).tolist():
            start, here = number * SLICE_CELLS, slices == number
            members = np.flatnonzero(self._chosen[self._labels[start : start + SLICE_CELLS]])
            found[here] = start + members[places[here] - self._edges[number]]
        return found


def draw_members(
    labels: np.ndarray, sizes: np.ndarray, wanted: Sequence[tuple[int, int]], generator: Generator
) -> list[np.ndarray]:
    """For each (label, n) of `wanted`: int64 [n], the indices of n cells of that label, at random, with replacement.

    labels  unsigned integers [cells]; sizes int [labels]: the number of cells of each
    All labels are found in one pass over `labels`.
    """
    places = [draw_integers(int(sizes[label]), n, generator) if n else np.empty(0, np.int64) for label, n in wanted]
    orders = [np.argsort(each) for each in places]
    ordered = [each[order] for each, order in zip(places, orders)]
    found = [np.empty(len(each), np.int64) for each in places]
    before = np.zeros(len(sizes), np.int64)  # cells of each label before the slice
    for start in range(0, len(labels), SLICE_CELLS):
        part = labels[start : start + SLICE_CELLS]
        by_label = np.argsort(part, kind="stable")
        counts = np.bincount(part, minlength=len(sizes))
        begins = np.cumsum(counts) - counts
        for k, (label, _) in enumerate(wanted):
            first, last = np.searchsorted(ordered[k], [before[label], before[label] + counts[label]])
            if last > first:
                here = by_label[begins[label] + ordered[k][first:last] - before[label]]
                found[k][orders[k][first:last]] = start + here
        before += counts
    return found


def sample_members(labels: np.ndarray, sizes: np.ndarray, n: int, generator: Generator) -> np.ndarray:
    """Ascending int64 indices of at most n cells of each label, chosen at random without replacement.

    labels  unsigned integers [cells]; those that `sizes` has no number for are left out
    sizes   int [labels]: the number of cells of each
    """
    places = [_choose_some(int(size), n, generator) for size in sizes.tolist()]
    before = np.zeros(len(sizes), np.int64)  # cells of each label before the slice
    found = []
    for start in range(0, len(labels), SLICE_CELLS):
        part = labels[start : start + SLICE_CELLS]
        by_label = np.argsort(part, kind="stable")
        counts = np.bincount(part, minlength=len(sizes))[: len(sizes)]
        begins = np.cumsum(counts) - counts
        for label in np.flatnonzero(counts).tolist():
            first, last = np.searchsorted(places[label], [before[label], before[label] + counts[label]])
            found.append(start + by_label[begins[label] + places[label][first:last] - before[label]])
        before += counts
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)


def _choose_some(size: int, n: int, generator: Generator) -> np.ndarray:
    """Ascending int64: at most n of the numbers below `size`, at random."""
    if size <= n:
        return np.arange(size)
    if size < 4 * n:
        return np.sort(torch.randperm(size, generator=generator, device=generator.device)[:n].cpu().numpy())
    chosen = np.empty(0, np.int64)  # of many cells few: draw until enough are different
    while len(chosen) < n:
        chosen = _first_of_each(np.concatenate([chosen, draw_integers(size, n, generator)]))
    return np.sort(chosen[:n])


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """The different values, in the order in which they come first."""
    return values[np.sort(np.unique(values, return_index=True)[1])]
