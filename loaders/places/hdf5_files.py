"""HDF5 files of a place, opened by h5py: from disk by its own driver, from a bucket through a file of bytes."""

import h5py

from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.streams import ObjectStream

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(place: Place) -> bool:
    """Whether a file is HDF5; of an object only the first bytes are read, so it must have no user block."""
    if not isinstance(place, ObjectPath):
        return bool(h5py.is_hdf5(place))
    if not place.is_file():
        return False
    with place.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def open_hdf5(place: Place) -> h5py.File:
    """The file, read-only. Raises OSError where it is not HDF5, StorageError."""
    if isinstance(place, ObjectPath):
        return h5py.File(ObjectStream(place), "r")
    return h5py.File(place, "r", locking="best-effort")  # many network file systems have no locks
