"""Rows of counts as a block holds them, and compiled loops that copy some of them into a minibatch."""

from dataclasses import dataclass

import numpy as np
from numba import njit


def choose_index_dtype(n_genes: int) -> np.dtype:
    """The narrowest dtype for gene indices among those of blocks and stores: uint16 or int32."""
    return np.dtype(np.uint16 if n_genes <= 2**16 else np.int32)


@dataclass
class Rows:
    """Consecutive cells: genes and counts of cell k are [starts[k], starts[k] + lengths[k]) of the two arrays.

    first  index of the first cell in the data; starts int64 [cells]; lengths int32 [cells]
    indices, counts  may hold other cells too, which were decoded with these
    """

    first: int
    starts: np.ndarray
    lengths: np.ndarray
    indices: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def from_csr(cls, first: int, indptr: np.ndarray, indices: np.ndarray, counts: np.ndarray) -> "Rows":
        """Rows of plain CSR; indptr int [cells + 1] begins with 0."""
        indptr = indptr.astype(np.int64)
        return cls(first, indptr[:-1], np.diff(indptr).astype(np.int32), indices, counts)

    def copy(self, cells: np.ndarray) -> "Rows":
        """A copy of the rows with these indices alone (int [n], in any order, with repeats), one after the other."""
        lengths, ends = self.lengths[cells], np.zeros(len(cells) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        indices, counts = np.empty(ends[-1], self.indices.dtype), np.empty(ends[-1], self.counts.dtype)
        library = np.empty(len(cells), np.float32)
        copy_cells(self.starts, self.lengths, self.indices, self.counts, cells, 0, ends, indices, counts, library)
        return Rows.from_csr(self.first, ends, indices, counts)

    def to_csr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indptr int64 [cells + 1], indices, counts) of these cells alone, contiguous."""
        indptr = np.append(self.starts, self.starts[-1] + self.lengths[-1])
        inside = slice(int(indptr[0]), int(indptr[-1]))
        return indptr - indptr[0], self.indices[inside], self.counts[inside]


@njit(nogil=True, cache=True)
def copy_cells(
    starts: np.ndarray,
    lengths: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
    cells: np.ndarray,
    first: int,
    ends: np.ndarray,
    out_indices: np.ndarray,
    out_counts: np.ndarray,
    library: np.ndarray,
) -> None:
    """Copy chosen cells of a block into a minibatch, and sum their counts.

    cells   int [n]: indices of cells in the block; they become cells first, first + 1, ... of the minibatch
    ends    int64 [minibatch + 1]: where each cell of the minibatch begins in out_indices and out_counts
    library float32 [minibatch]
    """
    for k in range(len(cells)):
        begin, n, at = starts[cells[k]], lengths[cells[k]], ends[first + k]
        # slices and one loop for each array: the compiler vectorises these, but not one loop over all arrays
        source, target = indices[begin : begin + n], out_indices[at : at + n]
        for j in range(n):
            target[j] = source[j]
        source_counts, target_counts = counts[begin : begin + n], out_counts[at : at + n]
        library[first + k] = copy_and_sum(source_counts, target_counts)


@njit(nogil=True, cache=True)
def copy_and_sum(source: np.ndarray, target: np.ndarray) -> float:
    """Copy values and return their sum as float64."""
    if source.itemsize > 2:
        all_of_it = 0.0
        for j in range(len(source)):
            target[j] = source[j]
            all_of_it += source[j]
        return all_of_it
    total = np.uint64(0)
    for start in range(0, len(source), 2**16):
        # the sum of 65,536 counts below 65,536 fits 32 bits: twice as many lanes to a vector as with 64
        part, part_target, part_total = source[start : start + 2**16], target[start : start + 2**16], np.uint32(0)
        for j in range(len(part)):
            part_target[j] = part[j]
            part_total = np.uint32(part_total + part[j])
        total += np.uint64(part_total)
    return float(total)


def gather_rows(indptr: np.ndarray, indices: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> tuple:
    """Chosen rows of a CSR matrix, in the order of `rows`: (indptr int64 [n + 1], indices, counts).

    Only the pointers of these rows are looked at, so gathering a matrix piece by piece takes one pass over it.
    """
    starts = indptr[rows].astype(np.int64)  # the dtypes of a loader, so that the loop is not compiled again
    lengths = (indptr[rows + 1] - starts).astype(np.int32)
    chosen = Rows(0, starts, lengths, indices, counts).copy(np.arange(len(rows)))
    return np.append(0, np.cumsum(lengths, dtype=np.int64)), chosen.indices, chosen.counts
