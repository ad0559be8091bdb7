"""One-dimensional arrays on disk read by slices: straight from the file where its layout allows, else by its library.

A library decodes under its lock, into fresh memory; what goes straight to the file does neither.
"""

from typing import Any

import h5py
import numpy as np
import zarr

from atlasvi.loaders.arrays.hdf5_arrays import Hdf5Array, open_hdf5_array
from atlasvi.loaders.arrays.zarr_arrays import ZarrArray, open_zarr_array
from atlasvi.loaders.rows.buffers import Buffers

MOST_HELD = 2**22  # elements of an array of row pointers that are held in memory (32 MiB)


class SlicedArray:
    """An array that only its library can read. What is said of its members here holds for every `StoredArray`."""

    def __init__(self, array: Any) -> None:
        self._array = array
        # elements that are decoded together; 1 where any slice can be read by itself
        self.piece = int(array.chunks[0]) if array.chunks else 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop), in memory that is lent for as long as someone refers to it; by several threads.

        Raises SourceError, naming the file, where they are damaged, or where the file was replaced.
        """
        return np.asarray(self._array[start:stop])

    def close(self) -> None:
        """Close files, beside those of the library; nothing can be read afterwards."""


StoredArray = Hdf5Array | ZarrArray | SlicedArray
"""A one-dimensional array on disk, by what reads it."""


def open_array(path: str, array: Any, buffers: Buffers) -> StoredArray:
    """The fastest way to read an h5py.Dataset or zarr.Array of one dimension; `path` is what errors call its file."""
    opened: StoredArray | None = None
    if isinstance(array, h5py.Dataset):
        opened = open_hdf5_array(path, array, buffers)
    elif isinstance(array, zarr.Array):
        opened = open_zarr_array(array, buffers)
    return opened or SlicedArray(array)


class RowPointers:
    """The row pointers of a matrix: all in memory where they are few, else read by slices."""

    def __init__(self, path: str, array: Any, buffers: Buffers) -> None:
        length = int(array.shape[0])
        self._held = np.asarray(array[:]).astype(np.int64) if length <= MOST_HELD else None
        self._array = open_array(path, array, buffers)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Int64 [stop - start + 1]: where rows [start, stop) begin, and where the last ends."""
        if self._held is not None:
            return self._held[start : stop + 1]
        return self._array.read(start, stop + 1).astype(np.int64)

    def close(self) -> None:
        """Let go of files."""
        self._array.close()
