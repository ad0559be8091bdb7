"""Entries (row, column, value) of a range of rows, in any order (coordinate list), sorted into rows by counting."""

import numpy as np
from numba import njit

from atlasvi.loaders.rows.block_rows import Rows, choose_index_dtype
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.narrowing import are_sorted

MOST_ROWS = 2**16


class EntryBlock:
    """Collects the entries of consecutive rows piece by piece, in narrow dtypes, and returns them as rows at the end.

    first_id  id of the first row; ids are consecutive; n_rows is at most MOST_ROWS
    column    int32 [column ids]: the column of each id, -1 for columns that are left out
    """

    def __init__(self, first_id: int, n_rows: int, column: np.ndarray, n_columns: int, buffers: Buffers) -> None:
        self._first_id, self._column, self._n_columns, self._buffers = first_id, column, n_columns, buffers
        self._lengths, self._pieces, self._bits = np.zeros(n_rows, np.int32), list[tuple[np.ndarray, ...]](), 0

    def add(self, row_ids: np.ndarray, column_ids: np.ndarray, values: np.ndarray) -> bool:
        """Add entries; returns False if a value is not a count from 1 to 65,535."""
        rows, columns, counts = (
            self._buffers.take(len(values) + 1, dtype) for dtype in (np.uint16, np.int32, np.uint16)
        )
        n, bits = take_entries(
            row_ids, column_ids, values, self._first_id, self._column, self._lengths, rows, columns, counts
        )
        self._bits |= bits
        self._pieces.append((rows[:n], columns[:n], counts[:n]))
        return bool(0 <= bits < 2**16)

    def to_rows(self, first: int) -> Rows | None:
        """All entries as rows, the first of which is row `first` of the data; None if columns are not ascending."""
        indptr = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(self._lengths, out=indptr[1:])
        indices = self._buffers.take(int(indptr[-1]), choose_index_dtype(self._n_columns))
        counts = self._buffers.take(int(indptr[-1]), np.uint8 if self._bits < 2**8 else np.uint16)
        ends = indptr[:-1].copy()
        for piece in self._pieces:
            place_entries(piece[0], piece[1], piece[2], ends, indices, counts)
        if not are_sorted(indptr, indices, self._n_columns):
            return None
        return Rows(first, indptr[:-1], self._lengths, indices, counts)


@njit(nogil=True, cache=True)
def take_entries(
    row_ids: np.ndarray,
    column_ids: np.ndarray,
    values: np.ndarray,
    first_id: int,
    column: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    counts: np.ndarray,
) -> tuple[int, int]:
    """Narrow the kept entries and count them by row; returns their number and the bitwise or of the values.

    The latter is -1 if a value is not a count.
    """
    at, bits, odd = 0, np.int64(0), False
    for k in range(len(values)):
        row, place = row_ids[k] - first_id, column_ids[k]
        if not (0 <= row < len(lengths) and 0 <= place < len(column)) or column[place] < 0:
            continue
        whole = np.int32(values[k])
        odd |= (values.dtype.type(whole) != values[k]) | (whole <= 0)
        bits |= np.int64(whole)
        rows[at], columns[at], counts[at] = row, column[place], whole
        lengths[row] += 1
        at += 1
    return at, -1 if odd else int(bits)


@njit(nogil=True, cache=True)
def place_entries(
    rows: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    ends: np.ndarray,
    indices: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Write entries at the current ends of their rows; advances `ends`, int64 [rows]."""
    for k in range(len(values)):
        at = ends[rows[k]]
        indices[at], counts[at] = columns[k], values[k]
        ends[rows[k]] = at + 1
