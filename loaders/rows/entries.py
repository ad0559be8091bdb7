"""Entries (row, column, value) of a block of rows, in the order of a coordinate list, sorted into rows by counting."""

import numpy as np
from numba import njit

from atlasvi.loaders.rows.block_rows import Rows, choose_index_dtype
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.narrowing import are_sorted

MOST_ROWS = 2**16


class EntryBlock:
    """Takes the entries of consecutive rows piece by piece, in narrow types; at the end gives them as rows.

    first_id  id of the first row, the others' follow; n_rows at most MOST_ROWS
    column    int32 [ids of columns]: the column of each id, -1 for those that are left out
    """

    def __init__(self, first_id: int, n_rows: int, column: np.ndarray, n_columns: int, buffers: Buffers) -> None:
        self._first_id, self._column, self._n_columns, self._buffers = first_id, column, n_columns, buffers
        self._lengths, self._pieces, self._bits = np.zeros(n_rows, np.int32), list[tuple[np.ndarray, ...]](), 0

    def add(self, row_ids: np.ndarray, column_ids: np.ndarray, values: np.ndarray) -> bool:
        """Take entries; False if one is not a count from 1 to 65,535."""
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
        """All entries as rows, of which `first` is the number of the first; None if their columns do not ascend."""
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
    """Narrow what is kept of entries, and count it by rows: how many, and their values or-ed, -1 if one is no count."""
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
    """Put entries where their rows end so far; int64 [rows] `ends` moves on."""
    for k in range(len(values)):
        at = ends[rows[k]]
        indices[at], counts[at] = columns[k], values[k]
        ends[rows[k]] = at + 1
