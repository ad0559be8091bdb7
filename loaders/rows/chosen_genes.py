"""Rows of counts restricted to a list of genes, in compiled loops that release the interpreter lock."""

import numpy as np
from numba import njit

from atlasvi.loaders.rows.block_rows import Rows, choose_index_dtype
from atlasvi.loaders.rows.buffers import Buffers


class GeneChoice:
    """Which genes are kept, and the new column of each.

    column   int [genes of the data]: the new column of each gene, -1 for genes that are left out
    n_genes  number of new columns; columns that belong to no gene of the data have no counts
    """

    def __init__(self, column: np.ndarray, n_genes: int) -> None:
        self._column, self._n_genes = column.astype(np.int32), n_genes
        kept = column[column >= 0]
        self._in_order = bool((kept[1:] > kept[:-1]).all())
        self._dtype = choose_index_dtype(n_genes)
        self._buffers = Buffers()

    def apply(self, rows: Rows) -> Rows:
        """The same rows with the kept genes alone, sorted by their new columns."""
        lengths = count_kept(rows.starts, rows.lengths, rows.indices, self._column)
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        # one element more than is kept: entries that are left out are written too, and then overwritten by the next
        indices, counts = (self._buffers.take(int(ends[-1]) + 1, dtype) for dtype in (self._dtype, rows.counts.dtype))
        if self._in_order:
            keep(rows.starts, rows.lengths, rows.indices, rows.counts, self._column, indices, counts)
        else:
            keep_sorted(
                rows.starts, rows.lengths, rows.indices, rows.counts, self._column, self._n_genes, indices, counts
            )
        return Rows(rows.first, ends[:-1], lengths, indices, counts)


@njit(nogil=True, cache=True)
def count_kept(starts: np.ndarray, lengths: np.ndarray, indices: np.ndarray, column: np.ndarray) -> np.ndarray:
    """int32 [rows]: how many stored counts of each row are kept."""
    kept = np.zeros(len(starts), np.int32)
    for row in range(len(starts)):
        n = 0
        for gene in indices[starts[row] : starts[row] + lengths[row]]:
            n += column[gene] >= 0
        kept[row] = n
    return kept


@njit(nogil=True, cache=True)
def keep(
    starts: np.ndarray,
    lengths: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    column: np.ndarray,
    out_indices: np.ndarray,
    out_counts: np.ndarray,
) -> None:
    """Copy the kept entries, where the kept genes are in the order of the data."""
    at = 0
    for row in range(len(starts)):
        for k in range(starts[row], starts[row] + lengths[row]):
            to = column[indices[k]]
            out_indices[at] = to
            out_counts[at] = counts[k]
            at += to >= 0  # no branch: it would be mispredicted often, which takes longer


@njit(nogil=True, cache=True)
def keep_sorted(
    starts: np.ndarray,
    lengths: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    column: np.ndarray,
    n_genes: int,
    out_indices: np.ndarray,
    out_counts: np.ndarray,
) -> None:
    """Copy the kept entries for any order of genes: each row is spread over all columns, then marked ones collected.

    Marks are tested eight at a time; sorting each row would take five times as long.
    """
    laid, marks = np.zeros(n_genes, counts.dtype), np.zeros((n_genes + 7) // 8 * 8, np.uint8)
    words = marks.view(np.uint64)
    at = 0
    for row in range(len(starts)):
        for k in range(starts[row], starts[row] + lengths[row]):
            to = column[indices[k]]
            if to >= 0:
                laid[to], marks[to] = counts[k], 1
        for word in range(len(words)):
            if words[word]:
                for to in range(8 * word, 8 * word + 8):
                    if marks[to]:
                        out_indices[at] = to
                        out_counts[at] = laid[to]
                        at += 1
                words[word] = 0
