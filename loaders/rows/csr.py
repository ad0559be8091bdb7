"""Rows as every source returns them: CSR with sorted indices, duplicates summed, no stored zeros."""

import numpy as np
import scipy.sparse as sp

from atlasvi.loaders.errors import SourceError


def to_numbers(values: np.ndarray, path: str, name: str) -> np.ndarray:
    """Return `values` in the nearest native dtype that scipy.sparse computes with.

    Big-endian becomes native, bool uint8, float16 float32, long double float64; other numbers stay as they are.
    Raises SourceError, naming `name` in `path`, where the values are not real numbers (text, complex, records).
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.uint8)
    if kind == "f" and size == 2:
        return values.astype(np.float32)
    if kind == "f" and size > 8:
        return values.astype(np.float64)
    if kind in "iuf":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    raise SourceError(
        f"{path}: {name} holds values of type {values.dtype}, which are not counts; choose another matrix with --layer."
    )


def canonical_csr(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n_cols: int) -> sp.csr_matrix:
    """Build a CSR matrix from its three arrays, which may be unsorted and hold duplicates and explicit zeros.

    data     [nnz] of a dtype that `to_numbers` returns; indices [nnz] and indptr [rows + 1] of any integer dtype
    Duplicates of an integer dtype are summed in 64 bits, so that a narrow dtype can't wrap around; NaN is kept.
    Raises ValueError where the arrays do not form a CSR matrix of `n_cols` columns: then the file is damaged.
    """
    if len(indices) and not (indices.min() >= 0 and indices.max() < n_cols):
        raise ValueError(f"a gene index is outside 0 to {n_cols - 1}")
    if indptr[0] != 0 or indptr[-1] != len(data) or len(indices) != len(data) or np.any(indptr[1:] < indptr[:-1]):
        raise ValueError("the row pointers do not fit the stored entries")
    narrow = np.int32 if max(len(data), n_cols) < 2**31 else np.int64
    matrix = sp.csr_matrix((len(indptr) - 1, n_cols), dtype=data.dtype)
    matrix.data = data
    matrix.indices = indices.astype(narrow, copy=False)
    matrix.indptr = indptr.astype(narrow, copy=False)
    matrix.sort_indices()  # does nothing if they are sorted already
    if not matrix.has_canonical_format:
        if data.dtype.kind in "iu":
            matrix = matrix.astype(np.uint64 if data.dtype == np.uint64 else np.int64)
        matrix.sum_duplicates()
    if np.count_nonzero(matrix.data) < matrix.nnz:
        matrix.eliminate_zeros()
    return matrix


def csr_from_entries(
    rows: np.ndarray, cols: np.ndarray, values: np.ndarray, n_rows: int, n_cols: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort entries given in any order; return (data, indices, indptr) of their CSR matrix, duplicates not yet summed.

    rows [n], cols [n]  integers below n_rows and n_cols
    """
    key = rows.astype(np.int64) * n_cols + cols
    order = np.argsort(key)
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=n_rows), out=indptr[1:])
    return values[order], cols[order], indptr
