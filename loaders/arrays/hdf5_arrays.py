"""One-dimensional HDF5 datasets read without the HDF5 library, which has one lock for all threads and copies twice.

The bytes of a dataset that is contiguous, or chunked without filters, are at known places of the file. Chunks that are
compressed with gzip, with or without byte shuffle, are decoded by each thread. All others are left to the library.
"""

import zlib

import h5py
import numpy as np
from h5py import h5d, h5z

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.byte_files import ByteFile, RangeAhead, RemoteFile
from atlasvi.loaders.places.hdf5_files import find_bytes
from atlasvi.loaders.rows.buffers import Buffers

GZIP = [[h5z.FILTER_DEFLATE], [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]]


def open_hdf5_array(path: str, array: h5py.Dataset, buffers: Buffers) -> "Hdf5Array | None":
    """A reader of the dataset, or None where only the library can read it."""
    properties = array.id.get_create_plist()
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    plain = array.dtype.isnative and array.dtype.kind in "iuf" and array.dtype.itemsize <= 8
    if not plain or not array.shape[0] or (file := find_bytes(array)) is None:
        return None
    if properties.get_layout() == h5d.CONTIGUOUS:
        offset = array.id.get_offset()
        if offset is None or properties.get_external_count() or filters:
            return None
        chunk, offsets = array.shape[0], np.array([offset], np.int64)
        sizes = np.array([array.shape[0] * array.dtype.itemsize], np.int64)
    elif properties.get_layout() == h5d.CHUNKED and filters in [[], *GZIP] and hasattr(array.id, "chunk_iter"):
        chunk = int(array.chunks[0])
        offsets, sizes = _locate_chunks(array, chunk)
        if (offsets < 0).any():  # never written: they hold the fill value
            return None
    else:
        return None
    return Hdf5Array(path, file, array, chunk, offsets, sizes, filters, buffers)


def _locate_chunks(array: h5py.Dataset, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Int64 [chunks] each: offset in the file (-1 for chunks that are not stored or skip a filter), and bytes there."""
    n_chunks = -(-array.shape[0] // chunk)
    offsets, sizes = np.full(n_chunks, -1, np.int64), np.zeros(n_chunks, np.int64)

    def note(stored: h5d.StoreInfo) -> None:
        number = stored.chunk_offset[0] // chunk
        if stored.filter_mask == 0 and number < n_chunks and stored.byte_offset is not None:
            offsets[number], sizes[number] = stored.byte_offset, stored.size

    array.id.chunk_iter(note)
    return offsets, sizes


class Hdf5Array:
    """A dataset whose bytes are at known places of a file; several threads may read it at once.

    offsets, sizes  int64 [chunks]: where the chunks are in the file, and their bytes there
    filters         empty, or one of GZIP
    """

    def __init__(
        self,
        path: str,
        file: ByteFile,
        array: h5py.Dataset,
        chunk: int,
        offsets: np.ndarray,
        sizes: np.ndarray,
        filters: list[int],
        buffers: Buffers,
    ) -> None:
        self._path, self._name, self._dtype, self._length = path, array.name, array.dtype, array.shape[0]
        self._chunk, self._offsets, self._sizes, self._filters, self._buffers = chunk, offsets, sizes, filters, buffers
        self.piece = chunk if filters else 1
        self._file = file

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop)."""
        if start >= stop:
            return np.empty(0, self._dtype)
        first, last = start // self._chunk, -(-stop // self._chunk)
        if self._filters:
            out = self._buffers.take((last - first) * self._chunk, self._dtype)
            # from disk chunk by chunk, which takes less memory; from a bucket all at once, in few requests
            step = last - first if self._file.is_remote else 1
            for k in range(first, last, step):
                self._inflate(k, k + step, out[(k - first) * self._chunk : (k - first + step) * self._chunk])
            out = out[start - first * self._chunk : stop - first * self._chunk]
        else:
            out = self._buffers.take(stop - start, self._dtype)
            ranges = self._locate(start, stop)
            ends = np.cumsum([high - low for low, high in ranges]).tolist()
            content = out.view(np.uint8)
            self._read_parts([low for low, _ in ranges], [content[low:high] for low, high in zip([0, *ends], ends)])
        if not self._file.is_current():
            raise SourceError(
                f"{self._path} was written to while it was being read: wait until that is done, and start again."
            )
        return out

    def ask_ahead(self, start: int, stop: int) -> list[RangeAhead]:
        """Begin to read elements [start, stop) from a bucket; see `RemoteFile.ask_ahead`."""
        if start >= stop or not isinstance(self._file, RemoteFile):
            return []
        return self._file.ask_parts_ahead(self._locate(start, stop))

    def _locate(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where in the file elements [start, stop) are: a range for each chunk, which is whole if it is compressed."""
        chunks = range(start // self._chunk, -(-stop // self._chunk))
        if self._filters:
            return [(int(self._offsets[k]), int(self._offsets[k] + self._sizes[k])) for k in chunks]
        size, ranges = self._dtype.itemsize, []
        for k in chunks:
            low, high = max(start - k * self._chunk, 0), min(stop - k * self._chunk, self._chunk)
            ranges.append((int(self._offsets[k]) + low * size, int(self._offsets[k]) + high * size))
        return ranges

    def _inflate(self, first: int, last: int, out: np.ndarray) -> None:
        """Read and decode chunks [first, last)."""
        if last - first == 1:
            coded = self._buffers.take(int(self._sizes[first]), np.uint8)
            self._read_parts([int(self._offsets[first])], [coded])
            self._decode(first, coded, out)
            return
        ends = np.cumsum(self._sizes[first:last]).tolist()
        coded = self._buffers.take(ends[-1], np.uint8)
        parts = [coded[begin:end] for begin, end in zip([0, *ends], ends)]
        self._read_parts(self._offsets[first:last].tolist(), parts)
        for k, part in enumerate(parts):
            self._decode(first + k, part, out[k * self._chunk : (k + 1) * self._chunk])

    def _decode(self, chunk: int, coded: np.ndarray, out: np.ndarray) -> None:
        try:
            # one byte more than expected, so that a longer stream is noticed but not decoded
            content = np.frombuffer(zlib.decompressobj().decompress(coded.data, out.nbytes + 1), np.uint8)
        except zlib.error as error:
            raise self._damaged(f"chunk {chunk}: {error}") from error
        if len(content) != out.nbytes:
            raise self._damaged(f"chunk {chunk} has {len(content)} bytes where {out.nbytes} should be")
        if h5z.FILTER_SHUFFLE in self._filters:
            out.view(np.uint8).reshape(-1, out.itemsize)[:] = content.reshape(out.itemsize, -1).T
        else:
            out.view(np.uint8)[:] = content

    def _read_parts(self, offsets: list[int], outs: list[np.ndarray]) -> None:
        if self._file.read_parts(offsets, outs) is not None:
            raise self._damaged("the file ends before it does")

    def _damaged(self, what: str) -> SourceError:
        return SourceError(
            f"{self._path}: {self._name} is damaged or cut short ({what}); copy the file again, or write it again."
        )

    def close(self) -> None:
        """Drop the references to the file."""
        self._file.close()
