"""Of each cell: the coefficient of variation of its counts over genes, its library size, the number of its genes."""

from typing import NamedTuple

import numpy as np
from numba import njit
from scipy import sparse


class CellStatistics(NamedTuple):
    """Of cells, float32 [cells] each.

    variation  standard deviation / mean of the counts over all genes (ddof 0); NaN for a cell without counts
    library    sum of the counts
    expressed  number of genes with a count above 0
    """

    variation: np.ndarray
    library: np.ndarray
    expressed: np.ndarray


def cell_statistics(counts: sparse.csr_matrix) -> CellStatistics:
    """The statistics of the cells (rows) of a matrix of counts, computed in float64."""
    sums, squares, expressed = np.zeros((3, counts.shape[0]))
    cells = np.repeat(np.arange(counts.shape[0], dtype=np.int32), np.diff(counts.indptr))
    add_counts(cells, counts.data, sums, squares, expressed)
    variation = coefficient_of_variation(sums, squares, counts.shape[1])
    return CellStatistics(*(each.astype(np.float32) for each in (variation, sums, expressed)))


def coefficient_of_variation(sums: np.ndarray, squares: np.ndarray, n: int) -> np.ndarray:
    """Standard deviation (ddof 0) / mean from sums and sums of squares of n counts; NaN where all counts are 0."""
    mean = sums / max(n, 1)
    variance = np.maximum(squares / max(n, 1) - mean**2, 0)
    return np.divide(np.sqrt(variance), mean, out=np.full(mean.shape, np.nan), where=mean > 0)


@njit(cache=True, nogil=True)
def add_counts(
    places: np.ndarray, values: np.ndarray, sums: np.ndarray, squares: np.ndarray, expressed: np.ndarray
) -> None:
    """Add stored counts to the sums of the cell or the gene that each is of: float64 [cells] or [genes].

    places  int [counts], the index of its cell or gene
    """
    for place, value in zip(places, values):
        sums[place] += value
        squares[place] += np.float64(value) ** 2
        expressed[place] += value > 0
