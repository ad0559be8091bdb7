"""The rows of a cell store's X: read fast from its shards, or slowly through zarr-python; both give the same bits.

The environment variable ATLASVI_READER chooses: 'shards' (the default) or 'zarr', the reference that the fast reader is
compared with. Both refuse damaged rows; only the fast one names the shard and the chunk, and notices that a shard was
replaced or deleted since it was opened.
"""

import itertools
import os
from functools import partial
from typing import Any

import numpy as np
import zarr

from atlasvi.loaders.arrays.shards import Layout, ShardReader
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.byte_files import RangeAhead
from atlasvi.loaders.places.connections import share_readers
from atlasvi.loaders.places.disk_cache import find_cache
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.objects import together
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.row_checks import check_four_byte_counts, check_genes, check_pointers

VARIABLE = "ATLASVI_READER"
ARRAYS = ("data", "indices", "indptr")


class ShardRows:
    """Rows read from the shard files of X, by several threads at once.

    layouts         of data, indices and indptr
    block_elements  stored counts of a block, at most
    """

    def __init__(
        self,
        folder: Place,
        layouts: tuple[Layout, Layout, Layout],
        shape: tuple[int, int],
        nnz: int,
        block_elements: int,
    ) -> None:
        self._n_genes, self._nnz, self._block_elements, self._buffers = shape[1], nnz, block_elements, Buffers()
        self._is_remote = isinstance(folder, ObjectPath)
        # While one array is waited for, the other is decoded. With a cache there is seldom anything to wait for, and
        # handing work to threads takes longer than reading it.
        self._uses_threads = self._is_remote and find_cache() is None
        self._data, self._indices, self._indptr = (
            ShardReader(folder / name, layout, length, self._buffers)
            for name, layout, length in zip(ARRAYS, layouts, (nnz, nnz, shape[0] + 1))
        )

    def read(self, start: int, stop: int) -> Rows:
        """Cells [start, stop), checked. Raises DamagedChunkError, SourceError or ValueError if they are damaged."""
        indptr, chunk = self._indptr.read(start, stop + 1), self._data.layout.chunk
        check_pointers(indptr, self._nnz, self._n_genes, self._block_elements + self._n_genes)
        first, last = int(indptr[0]) // chunk, -(-int(indptr[-1]) // chunk)
        indptr = indptr - first * chunk
        low, high = int(indptr[0]), int(indptr[-1])
        indices, counts = (
            self._buffers.take((last - first) * chunk, array.layout.dtype) for array in (self._indices, self._data)
        )
        # Both are asked for before either is waited for; what the loader asked for ahead, or the cache has, is not.
        asked = self._ask_for_counts(first, last)
        read_indices = partial(self._indices.read_chunks, first, last, indices, low, high)
        read_counts = partial(self._data.read_chunks, first, last, counts)
        if self._uses_threads:
            descents, _ = together([read_indices, read_counts], share_readers())
        else:
            descents = read_indices()
            read_counts()
        del asked
        check_genes(indptr, indices, self._n_genes, descents)
        check_four_byte_counts(counts[low:high])
        return Rows(start, indptr[:-1], np.diff(indptr).astype(np.int32), indices, counts)

    def ask_ahead(self, start: int, stop: int, first: int, last: int) -> list[RangeAhead]:
        """Begin to read cells [start, stop) from a bucket, whose counts are expected in inner chunks [first, last).

        What is returned must be kept until they are read.
        """
        chunk = self._indptr.layout.chunk
        asked = self._indptr.ask_ahead(start // chunk, stop // chunk + 1) if self._is_remote else []
        return [*asked, *self._ask_for_counts(first, min(last, -(-self._nnz // self._data.layout.chunk)))]

    def _ask_for_counts(self, first: int, last: int) -> list[RangeAhead]:
        """Begin to read inner chunks [first, last) of the genes and the counts from a bucket."""
        if not self._is_remote:
            return []
        return [asked for array in (self._indices, self._data) for asked in array.ask_ahead(first, last)]

    def close(self) -> None:
        """Close the files."""
        for array in (self._data, self._indices, self._indptr):
            array.close()


class ZarrRows:
    """Rows read as slices of plain Zarr arrays, and checked row by row: the reference for `ShardRows`."""

    def __init__(self, matrix: Any, shape: tuple[int, int], nnz: int, block_elements: int) -> None:
        self._arrays: list[zarr.Array] = [matrix[name] for name in ARRAYS]
        self._n_genes, self._nnz, self._block_elements = shape[1], nnz, block_elements

    def read(self, start: int, stop: int) -> Rows:
        """Cells [start, stop), checked. Raises ValueError if they are damaged."""
        data, indices, indptr = self._arrays
        pointers = self._slice(indptr, start, stop + 1)
        check_pointers(pointers, self._nnz, self._n_genes, self._block_elements + self._n_genes)
        low, high = int(pointers[0]), int(pointers[-1])
        pointers = pointers - low
        genes, counts = self._slice(indices, low, high), self._slice(data, low, high)
        for begin, end in itertools.pairwise(pointers.tolist()):
            row = genes[begin:end].astype(np.int64)
            if (np.diff(row) <= 0).any():
                raise ValueError("the gene indices of a row do not ascend")
            if len(row) and not (row[0] >= 0 and row[-1] < self._n_genes):
                raise ValueError(f"a gene index is outside 0 to {self._n_genes - 1:,}")
        check_four_byte_counts(counts)
        return Rows.from_csr(start, pointers, genes, counts)

    def ask_ahead(self, start: int, stop: int, first: int, last: int) -> list[RangeAhead]:
        """Nothing is read ahead."""
        return []

    def close(self) -> None:
        """Nothing is open."""

    def _slice(self, array: zarr.Array, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop). Raises ValueError where zarr fails, with any exception, to decode them."""
        try:
            return np.asarray(array[start:stop])
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{array.path}: {error}") from error


def open_rows(
    folder: Place,
    matrix: Any,
    layouts: tuple[Layout, Layout, Layout],
    shape: tuple[int, int],
    nnz: int,
    block_elements: int,
) -> ShardRows | ZarrRows:
    """The reader of X that ATLASVI_READER names; `folder` and `matrix` are X as a folder and as a Zarr group.

    Raises SourceError for any other name.
    """
    reader = os.environ.get(VARIABLE) or "shards"
    if reader not in ("shards", "zarr"):
        raise SourceError(f"The environment variable {VARIABLE} is {reader!r}: it can be 'shards' or 'zarr'.")
    if reader == "zarr":
        return ZarrRows(matrix, shape, nnz, block_elements)
    return ShardRows(folder, layouts, shape, nnz, block_elements)
