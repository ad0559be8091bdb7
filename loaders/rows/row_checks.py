"""What compiled code takes for granted of a block of rows, checked once a block: bounds, order, sizes.

A checksum says that a file is as it was written, not that what was written can be trusted: pointers that leave the
arrays and genes beyond the last one would be followed into memory of something else.
"""

import numpy as np
from numba import njit

MOST_COUNT = 2**31 - 1  # minibatches hold counts of four bytes as int32


def check_pointers(indptr: np.ndarray, nnz: int, n_genes: int, most: int) -> None:
    """Raise ValueError unless `indptr`, int64 [rows + 1], cuts at most `most` of `nnz` stored counts into rows."""
    lengths = np.diff(indptr)
    if indptr[0] < 0 or indptr[-1] > nnz or (lengths < 0).any():
        raise ValueError(f"its row pointers do not ascend from 0 to the {nnz:,} stored counts")
    if lengths.max(initial=0) > n_genes or indptr[-1] - indptr[0] > most:
        raise ValueError(f"a row has {lengths.max(initial=0):,} counts, and there are {n_genes:,} genes")


def check_genes(indptr: np.ndarray, genes: np.ndarray, n_genes: int, descents: int) -> None:
    """Raise ValueError unless the genes of each row ascend, none twice, all from 0 to n_genes - 1.

    indptr    int64 [rows + 1]: where rows begin and end in `genes`
    descents  how many of the genes from indptr[0] to indptr[-1], the first left out, are not above the one before: so
              many that the decoder has counted on its way. If all of these are at the beginning of rows, rows ascend
    """
    between_rows, smallest, largest = look_at_edges(indptr, genes)
    if descents != between_rows:
        raise ValueError("the gene indices of a row do not ascend")
    if smallest < 0 or largest >= n_genes:
        raise ValueError(f"a gene index is outside 0 to {n_genes - 1:,}")


@njit(nogil=True, cache=True)
def look_at_edges(indptr: np.ndarray, genes: np.ndarray) -> tuple[int, int, int]:
    """Of rows with counts: how many first genes are not above the last one before, the smallest first, largest last."""
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
