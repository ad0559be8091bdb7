"""Of each cell: the coefficient of variation of its counts over genes, its library size, the number of its genes."""

from typing import NamedTuple

import numpy as np
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
    n_genes, values = counts.shape[1], counts.data.astype(np.float64)
    sums, squares, expressed = (
        sparse.csr_matrix((each, counts.indices, counts.indptr), counts.shape).sum(1).A1
        for each in (values, values**2, (values > 0).astype(np.float64))
    )
    return CellStatistics(
        *(each.astype(np.float32) for each in (coefficient_of_variation(sums, squares, n_genes), sums, expressed))
    )


def coefficient_of_variation(sums: np.ndarray, squares: np.ndarray, n: int) -> np.ndarray:
    """Standard deviation (ddof 0) / mean from sums and sums of squares of n counts; NaN where all counts are 0."""
    mean = sums / max(n, 1)
    variance = np.maximum(squares / max(n, 1) - mean**2, 0)
    return np.divide(np.sqrt(variance), mean, out=np.full(mean.shape, np.nan), where=mean > 0)
