"""The layouts of a matrix in an HDF5 or Zarr group, each read by rows: CSR, CSC, dense."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from atlasvi.loaders.arrays.stored_arrays import RowPointers, StoredArray, open_array
from atlasvi.loaders.arrays.zarr_arrays import NotStoredError
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.byte_files import RangeAhead
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.csr import canonical_csr, to_numbers
from atlasvi.loaders.rows.narrowing import narrow_rows
from atlasvi.loaders.rows.spool import RowSpool

Array = Any  # h5py.Dataset or zarr.Array: shape, dtype, chunks, slicing

# Bytes of one read of a dense matrix: wide enough to decode few chunks twice, small beside a minibatch's memory.
DENSE_BYTES = 64 * 2**20
# Entries of a CSC matrix passed to the spool at a time.
PIECE_ENTRIES = 2**20


class CompressedRows:
    """A CSR matrix stored as three arrays, of which only slices are read.

    The docstrings of its members hold for every `Matrix`.

    path, name  names of the file and the matrix in errors
    Raises SourceError where the arrays' lengths do not fit each other or `shape`.
    """

    spooled = False  # whether the first read sorts all entries on disk

    def __init__(self, path: str, name: str, data: Array, indices: Array, indptr: Array, shape: tuple[int, int]):
        self.shape = shape  # cells x genes
        self.nnz: int | None = int(data.shape[0])  # explicit zeros and duplicates included; None if not known
        self._path, self._name = path, name
        self._data, self._indices, self._indptr = data, indices, indptr
        check_compressed(path, name, data, indices, indptr, shape[0])
        self._direct: DirectRows | None = None
        self._lock = threading.Lock()

    def read_rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) as canonical CSR in the stored dtype."""
        indptr = np.asarray(self._indptr[start : stop + 1]).astype(np.int64)
        low, high = int(indptr[0]), int(indptr[-1])
        if not 0 <= low <= high <= int(self._data.shape[0]):
            raise ValueError(f"the row pointers of {self._name} do not fit the stored entries")
        data = to_numbers(np.asarray(self._data[low:high]), self._path, self._name)
        return canonical_csr(data, np.asarray(self._indices[low:high]), indptr - low, self.shape[1])

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as counts of narrow dtypes, fast; None where the caller must use `read_rows`."""
        if min(self.shape) < 2:  # all indices may be zero, and then chunks of them need not be stored
            return None
        return self._open_direct().read(start, stop)

    def ask_ahead(self, start: int, stop: int) -> list[RangeAhead]:
        """Begin to read what `read_narrow` will need of a bucket; what is returned must be kept until then."""
        return [] if min(self.shape) < 2 else self._open_direct().ask_ahead(start, stop)

    def count_piece_rows(self) -> float:
        """Rows that are decoded together: reading fewer decodes more than is returned."""
        piece = max(self._open_direct().data.piece, self._open_direct().indices.piece)
        return piece * self.shape[0] / max(self.nnz or 0, 1)

    def _open_direct(self) -> "DirectRows":
        with self._lock:  # opened at the first read: finding the chunks of a large file takes a while
            if self._direct is None:
                self._direct = DirectRows(self._path, self._data, self._indices, self._indptr, self.shape[1])
        return self._direct

    def close(self) -> None:
        """Close the files."""
        if self._direct is not None:
            self._direct.close()


class DirectRows:
    """The three arrays of a CSR matrix, read directly from their files where possible (see stored_arrays.py)."""

    def __init__(self, path: str, data: Array, indices: Array, indptr: Array, n_genes: int) -> None:
        self._buffers, self._n_genes, self._nnz = Buffers(), n_genes, int(data.shape[0])
        self.data: StoredArray = open_array(path, data, self._buffers)
        self.indices: StoredArray = open_array(path, indices, self._buffers)
        self._pointers = RowPointers(path, indptr, self._buffers)

    def read(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as counts of narrow dtypes; None if they are not canonical CSR of counts."""
        indptr = self._pointers.read(start, stop)
        low, high = int(indptr[0]), int(indptr[-1])
        if not 0 <= low <= high <= self._nnz:
            return None
        try:
            indices, values = self.indices.read(low, high), self.data.read(low, high)
        except NotStoredError:
            return None
        return narrow_rows(start, indptr - low, indices, values, self._n_genes, self._buffers)

    def ask_ahead(self, start: int, stop: int) -> list[RangeAhead]:
        """Begin to read rows [start, stop) from a bucket."""
        low, high = (int(edge) for edge in self._pointers.read(start, stop)[[0, -1]])
        if not 0 <= low <= high <= self._nnz:
            return []
        return [*self.indices.ask_ahead(low, high), *self.data.ask_ahead(low, high)]

    def close(self) -> None:
        """Close the files."""
        for array in (self.data, self.indices, self._pointers):
            array.close()


class DenseRows:
    """A dense matrix, read in tiles of at most DENSE_BYTES that become CSR one by one."""

    spooled = False

    def __init__(self, path: str, name: str, array: Array):
        self.shape = int(array.shape[0]), int(array.shape[1])
        self.nnz: int | None = None
        self._path, self._name, self._array = path, name, array

    def read_rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) as canonical CSR in the stored dtype."""
        n_cols = self.shape[1]
        n_rows, width = dense_tile(stop - start, n_cols, self._array.chunks, self._array.dtype.itemsize)
        bands = [
            sp.hstack(
                [
                    self._read_tile(slice(row, min(row + n_rows, stop)), slice(col, min(col + width, n_cols)))
                    for col in range(0, n_cols, width)
                ],
                format="csr",
            )
            for row in range(start, max(stop, start + 1), n_rows)
        ]
        matrix = bands[0] if len(bands) == 1 else sp.vstack(bands, format="csr")
        return canonical_csr(matrix.data, matrix.indices, matrix.indptr, n_cols)

    def read_narrow(self, start: int, stop: int) -> None:
        """None always: the caller uses `read_rows`."""

    def ask_ahead(self, start: int, stop: int) -> list[RangeAhead]:
        """Nothing is read ahead."""
        return []

    def count_piece_rows(self) -> float:
        """Rows that are decoded together."""
        return 1.0

    def _read_tile(self, rows: slice, cols: slice) -> sp.csr_matrix:
        return sp.csr_matrix(to_numbers(np.asarray(self._array[rows, cols]), self._path, self._name))

    def close(self) -> None:
        """Nothing is open."""


def dense_tile(n_rows: int, n_cols: int, chunks: tuple[int, ...] | None, itemsize: int) -> tuple[int, int]:
    """(rows, columns) of one read of a dense matrix, so that a chunk narrower than the matrix is decoded once."""
    width = min(n_cols, chunks[1]) if chunks else n_cols
    rows = max(1, min(n_rows, DENSE_BYTES // (width * itemsize)))
    width *= max(1, DENSE_BYTES // (rows * width * itemsize))
    return rows, min(width, n_cols)


class SpooledColumns(RowSpool):
    """A CSC matrix as three arrays, put in row order out of core at the first read (see spool.py).

    Holds the column pointers in memory: 8 bytes per gene.
    """

    def __init__(
        self,
        path: str,
        name: str,
        data: Array,
        indices: Array,
        indptr: Array,
        shape: tuple[int, int],
        scratch: str | Path | None,
    ):
        self._path, self._name = path, name
        self._data, self._indices, self._indptr = data, indices, indptr
        check_compressed(path, name, data, indices, indptr, shape[1])
        value_dtype = to_numbers(np.empty(0, dtype=data.dtype), path, name).dtype
        super().__init__(self._read_entries, shape, int(data.shape[0]), value_dtype, scratch)

    def _read_entries(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        indptr = np.asarray(self._indptr[:]).astype(np.int64)
        if np.any(indptr[1:] < indptr[:-1]):
            raise ValueError(f"the column pointers of {self._name} do not fit the stored entries")
        n_entries = int(self._data.shape[0])
        for low in range(0, n_entries, PIECE_ENTRIES):
            high = min(low + PIECE_ENTRIES, n_entries)
            rows = np.asarray(self._indices[low:high])
            if rows.min() < 0 or rows.max() >= self.shape[0]:
                raise ValueError(f"a cell index of {self._name} is outside 0 to {self.shape[0] - 1}")
            cols = np.searchsorted(indptr, np.arange(low, high), side="right") - 1
            yield rows, cols, to_numbers(np.asarray(self._data[low:high]), self._path, self._name)


Matrix = CompressedRows | DenseRows | RowSpool
"""Cells x genes, read by rows: any layout that a file may have."""


def check_compressed(path: str, name: str, data: Array, indices: Array, indptr: Array, n_major: int) -> None:
    """Raise SourceError where the three arrays of a compressed matrix do not fit each other or its length."""
    for part, array in (("data", data), ("indices", indices), ("indptr", indptr)):
        if len(array.shape) != 1 or (part != "data" and array.dtype.kind not in "iu"):
            raise SourceError(
                f"{path}: {name} is damaged: {part} is an array of {array.dtype} with {len(array.shape)} dimensions, "
                f"where it should be {'numbers' if part == 'data' else 'integers'} in one; write the file again."
            )
    n_entries = int(data.shape[0])
    ends = (int(indptr[0]), int(indptr[-1])) if indptr.shape[0] else (0, 0)
    if indptr.shape[0] != n_major + 1 or indices.shape[0] != n_entries or ends != (0, n_entries):
        raise SourceError(
            f"{path}: {name} is damaged: {indices.shape[0]} indices, {n_entries} values and {indptr.shape[0]} pointers "
            f"(up to {ends[1]}) for {n_major} rows or columns do not fit each other; copy the file again, or write it "
            "again."
        )
