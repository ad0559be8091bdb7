"""Stored entries become counts of narrow dtypes in two compiled passes that release the lock, if they are regular.

Irregular entries (values that are not counts, unsorted genes, duplicates, stored zeros) are only detected here; csr.py
and count_checks.py correct them or report them, more slowly.
"""

import numpy as np
from numba import njit

from atlasvi.loaders.rows.block_rows import Rows, choose_index_dtype
from atlasvi.loaders.rows.buffers import Buffers

MOST = 2**24  # whole numbers up to this are exact in float32
VALUES = {np.dtype(name) for name in ("f4", "f8", "u1", "u2", "u4", "i1", "i2", "i4", "i8", "u8")}
INDICES = {np.dtype(name) for name in ("u1", "u2", "u4", "i1", "i2", "i4", "i8", "u8")}


def narrow_rows(
    first: int, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, n_genes: int, buffers: Buffers
) -> Rows | None:
    """Rows in the dtypes of a minibatch from stored CSR; None if it is not canonical CSR of counts.

    first   index of the first row in the data; indptr int64 [rows + 1], begins with 0
    indices, values  [nnz] of any numeric dtypes; they are used without a copy if they are narrow enough
    """
    if values.dtype not in VALUES or indices.dtype not in INDICES or len(indices) != len(values):
        return None
    if indptr[0] != 0 or indptr[-1] != len(values) or (indptr[1:] < indptr[:-1]).any():
        return None
    if not are_sorted(indptr, indices, n_genes):
        return None
    bits = find_bits(values)
    if not 0 <= bits < MOST:
        return None
    index_dtype = choose_index_dtype(n_genes)
    counts_dtype = np.dtype(np.uint8 if bits < 2**8 else np.uint16 if bits < 2**16 else np.uint32)
    narrow = [
        part if part.dtype == dtype else copy_narrow(part, buffers.take(len(part), dtype))
        for part, dtype in ((indices, index_dtype), (values, counts_dtype))
    ]
    return Rows(first, indptr[:-1], np.diff(indptr).astype(np.int32), *narrow)


@njit(nogil=True, cache=True)
def are_sorted(indptr: np.ndarray, indices: np.ndarray, n_genes: int) -> bool:
    """Whether the gene indices of each row ascend without duplicates, all from 0 to n_genes - 1."""
    for row in range(len(indptr) - 1):
        part = indices[indptr[row] : indptr[row + 1]]
        if len(part) and (part[0] < 0 or part[-1] >= n_genes):
            return False
        wrong = 0
        for k in range(1, len(part)):  # no early exit, so that the loop is vectorised
            wrong |= part[k] <= part[k - 1]
        if wrong:
            return False
    return True


@njit(nogil=True, cache=True)
def find_bits(values: np.ndarray) -> int:
    """Bitwise or of all values, as wide as the largest; negative if one is not a whole number from 1 to 2**31 - 1."""
    bits, odd = np.int32(0), 0
    for k in range(len(values)):
        whole = np.int32(values[k])
        bits |= whole
        odd |= (values.dtype.type(whole) != values[k]) | (whole == 0)  # NaN differs from every number
    return -1 if odd else int(bits)


@njit(nogil=True, cache=True)
def copy_narrow(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Copy values into `out`, whose dtype holds them, and return it."""
    for k in range(len(values)):
        out[k] = out.dtype.type(np.int32(values[k]))
    return out
