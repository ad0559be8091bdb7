"""One-dimensional arrays on disk read by slices: directly from the file where its layout allows, else by the library.

A library decodes under its lock and into new memory; the direct readers do neither.
"""

from typing import Any

import h5py
import numpy as np
import zarr

from atlasvi.loaders.arrays.hdf5_arrays import Hdf5Array, open_hdf5_array
from atlasvi.loaders.arrays.zarr_arrays import ZarrArray, open_zarr_array
from atlasvi.loaders.places.byte_files import RangeAhead
from atlasvi.loaders.rows.buffers import Buffers

MOST_HELD = 2**22  # elements of an array of row pointers that is kept in memory (32 MiB)


class SlicedArray:
    """An array that only its library can read. The docstrings of its members hold for every `StoredArray`."""

    def __init__(self, array: Any) -> None:
        self._array = array
        # elements that are decoded together; 1 where any slice can be read alone
        self.piece = int(array.chunks[0]) if array.chunks else 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop), in memory that is reused once nothing refers to it; by several threads at once.

        Raises SourceError, naming the file, where they are damaged, or where the file was replaced.
        """
        return np.asarray(self._array[start:stop])

    def ask_ahead(self, start: int, stop: int) -> list[RangeAhead]:
        """Begin to read elements [start, stop) from a bucket; see `RemoteFile.ask_ahead`."""
        return []

    def close(self) -> None:
        """Close our own open files, not those of the library; nothing can be read afterwards."""


StoredArray = Hdf5Array | ZarrArray | SlicedArray
"""A one-dimensional array on disk, by its reader."""


def open_array(path: str, array: Any, buffers: Buffers) -> StoredArray:
    """The fastest reader of a one-dimensional h5py.Dataset or zarr.Array; `path` is the name of its file in errors."""
    opened: StoredArray | None = None
    if isinstance(array, h5py.Dataset):
        opened = open_hdf5_array(path, array, buffers)
    elif isinstance(array, zarr.Array):
        opened = open_zarr_array(array, buffers)
    return opened or SlicedArray(array)


class RowPointers:
    """The row pointers of a matrix: in memory if they are few, else read by slices."""

    def __init__(self, path: str, array: Any, buffers: Buffers) -> None:
        length = int(array.shape[0])
        self._held = np.asarray(array[:]).astype(np.int64) if length <= MOST_HELD else None
        self._array = open_array(path, array, buffers)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Int64 [stop - start + 1]: where rows [start, stop) begin, and where the last one ends."""
        if self._held is not None:
            return self._held[start : stop + 1]
        return self._array.read(start, stop + 1).astype(np.int64)

    def close(self) -> None:
        """Close the files."""
        self._array.close()
