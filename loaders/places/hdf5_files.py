"""HDF5 files of a place, opened by h5py: from disk by its own driver, from a bucket through a file of bytes.

Their bytes can also be read beside the library, which has one lock for all threads.
"""

import atexit
import os
import weakref
from pathlib import Path

import h5py
from h5py import h5f, h5i

from atlasvi.loaders.places.byte_files import ByteFile, LocalFile
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.requests import NoPermissionError
from atlasvi.loaders.places.streams import ObjectStream

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_streams: "weakref.WeakValueDictionary[str, ObjectStream]" = weakref.WeakValueDictionary()  # by the name in h5py


def is_hdf5(place: Place) -> bool:
    """Whether a file is HDF5; of an object only the first bytes are looked at, so it must have no user block."""
    if not isinstance(place, ObjectPath):
        return bool(h5py.is_hdf5(place))
    try:
        with place.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except (FileNotFoundError, NoPermissionError):
        return False


def open_hdf5(place: Place) -> h5py.File:
    """The file, read-only. Raises OSError where it is not HDF5, StorageError."""
    if isinstance(place, ObjectPath):
        stream = ObjectStream(place)
        file = h5py.File(stream, "r")
        _streams[file.filename] = stream
        return file
    return h5py.File(place, "r", locking="best-effort")  # many network file systems have no locks


def find_bytes(array: h5py.Dataset) -> ByteFile | None:
    """The bytes of the file that an array is in; None where HDF5's offsets are not those in the file."""
    file = array.file
    if file.userblock_size:
        return None
    if file.driver == "sec2":
        return OpenedFile(file)
    stream = _streams.get(file.filename) if file.driver == "fileobj" else None
    return None if stream is None else stream.file


@atexit.register
def _close_streams() -> None:
    """Close files of buckets that are still open: HDF5 closes them after Python has ended, and would then call it."""
    for found in h5f.get_obj_ids(h5f.OBJ_ALL, h5f.OBJ_FILE | h5f.OBJ_DATASET | h5f.OBJ_GROUP):
        if found.valid and (file := h5py.File(h5i.get_file_id(found))).driver == "fileobj":
            file.close()


class OpenedFile(LocalFile):
    """The local file that the library has opened, even if another one is at its path by now."""

    def __init__(self, file: h5py.File) -> None:
        self.path, self._handle = Path(file.filename), os.dup(file.id.get_vfd_handle())
        self.identity = self._identify()
        self.size = self.identity[0]

    def is_current(self) -> bool:
        """Whether nobody has written to it."""
        return self._identify() == self.identity

    def _identify(self) -> tuple[int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns
