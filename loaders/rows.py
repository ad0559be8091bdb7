"""Rows of counts in CSR, as a block holds them."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Rows:
    """Consecutive cells. first: number of the first cell; indptr int64 [n + 1] from 0; indices, counts [nnz]."""

    first: int
    indptr: np.ndarray
    indices: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1


def gather_rows(indptr: np.ndarray, indices: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> tuple:
    """The chosen rows, in the order asked for: (indptr int64 [n + 1], indices, counts)."""
    lengths = (indptr[1:] - indptr[:-1])[rows]
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    places = np.repeat(indptr[rows] - ends[:-1], lengths)
    places += np.arange(ends[-1])
    return ends, indices[places], counts[places]
