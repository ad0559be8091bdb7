"""What compiled code takes for granted of a block of rows, checked once a block: bounds, order, sizes.

A checksum says that a file is as it was written, not that what was written can be trusted: pointers that leave the
arrays and genes beyond the last one would be followed into memory of something else.
"""

import numpy as np

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
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    if not len(filled):
        return
    firsts, lasts = indptr[filled], indptr[filled + 1] - 1
    between_rows = np.count_nonzero(genes[firsts[1:]] <= genes[firsts[1:] - 1])
    if descents != between_rows:
        raise ValueError("the gene indices of a row do not ascend")
    if genes[firsts].min() < 0 or genes[lasts].max() >= n_genes:
        raise ValueError(f"a gene index is outside 0 to {n_genes - 1:,}")


def check_four_byte_counts(counts: np.ndarray) -> None:
    """Raise ValueError if a count is above 2**31 - 1."""
    if counts.dtype.itemsize > 2 and counts.max(initial=0) > MOST_COUNT:
        raise ValueError(f"a count is above {MOST_COUNT:,}")
