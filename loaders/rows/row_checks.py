"""Checks, once a block, of what compiled code relies on: bounds, order, sizes.

A checksum shows that a file is as it was written, not that its content is valid: row pointers outside the arrays and
gene indices beyond the last gene would make compiled code access other memory.
"""

import numpy as np
from numba import njit

MOST_COUNT = 2**31 - 1  # minibatches hold counts of four bytes as int32


def check_pointers(indptr: np.ndarray, nnz: int, n_genes: int, most: int) -> None:
    """Raise ValueError unless `indptr`, int64 [rows + 1], splits at most `most` of `nnz` stored counts into rows."""
    lengths = np.diff(indptr)
    if indptr[0] < 0 or indptr[-1] > nnz or (lengths < 0).any():
        raise ValueError(f"its row pointers do not ascend from 0 to the {nnz:,} stored counts")
    if lengths.max(initial=0) > n_genes or indptr[-1] - indptr[0] > most:
        raise ValueError(f"a row has {lengths.max(initial=0):,} counts, and there are {n_genes:,} genes")


def check_genes(indptr: np.ndarray, genes: np.ndarray, n_genes: int, descents: int) -> None:
    """Raise ValueError unless the genes of each row ascend without duplicates, all from 0 to n_genes - 1.

    indptr    int64 [rows + 1]: where rows begin and end in `genes`
    descents  how many of genes[indptr[0] + 1 : indptr[-1]] are not above the one before, as the decoder counted. If
              all of these are first genes of rows, every row ascends.
    """
    between_rows, smallest, largest = look_at_edges(indptr, genes)
    if descents != between_rows:
        raise ValueError("the gene indices of a row do not ascend")
    if smallest < 0 or largest >= n_genes:
        raise ValueError(f"a gene index is outside 0 to {n_genes - 1:,}")


@njit(nogil=True, cache=True)
def look_at_edges(indptr: np.ndarray, genes: np.ndarray) -> tuple[int, int, int]:
    """For rows with counts: (first genes not above the last gene before, smallest first gene, largest last gene)."""
    n_descents, smallest, largest, last = 0, 0, -1, -1
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        if begin == end:
            continue
        first = int(genes[begin])
        n_descents += begin > indptr[0] and first <= last
        last = int(genes[end - 1])
        smallest, largest = min(smallest, first), max(largest, last)
    return n_descents, smallest, largest


def check_four_byte_counts(counts: np.ndarray) -> None:
    """Raise ValueError if a count is above 2**31 - 1."""
    if counts.dtype.itemsize > 2 and counts.max(initial=0) > MOST_COUNT:
        raise ValueError(f"a count is above {MOST_COUNT:,}")
