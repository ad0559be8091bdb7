"""One-dimensional sharded Zarr v3 arrays read directly from the shard files (shard_writing.py writes them).

The files are valid for any Zarr v3 reader (sharding_indexed, blosc, crc32c, the registered delta filter); bypassing
zarr-python saves its overhead for each chunk, and lets a shard be written to disk chunk by chunk.
Layout of a shard file: the encoded inner chunks one after the other, then (offset, length) as little-endian uint64
for each inner chunk, then the crc32c of that index.
"""

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import google_crc32c
import numpy as np
from numcodecs import blosc

from atlasvi.loaders.arrays.decoding import decode_chunks
from atlasvi.loaders.errors import DamagedChunkError, SourceError
from atlasvi.loaders.places.byte_files import RangeAhead, RemoteFile, open_file, share_of_files
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.rows.buffers import Buffers

CHUNK_MISSING = 2**64 - 1
OPEN_SHARDS = 96  # kept open, over all arrays; an atlas has thousands, and a process may open about a thousand files
KEPT_BYTES = 2**26  # of indices of shards in a bucket, over all arrays
SHARD_BYTES = 2**12  # of memory that such a shard takes besides its index


@dataclass(frozen=True)
class Layout:
    """How a one-dimensional array is split and encoded; the same for writer and reader."""

    dtype: np.dtype
    chunk: int  # elements in an inner chunk: the unit of decoding
    shard: int  # elements in a shard file, a multiple of chunk
    delta: bool  # store differences within an inner chunk (wrapping around), so that sorted values take few bits
    compressor: str = "lz4"
    level: int = 5

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded inner chunk, which blosc compresses as one block (its default is smaller)."""
        return self.chunk * self.dtype.itemsize

    def encode(self, values: np.ndarray) -> bytes:
        """One inner chunk as bytes; `values` [chunk] of `dtype`."""
        if self.delta:
            gaps = np.empty_like(values)
            gaps[0] = values[0]
            np.subtract(values[1:], values[:-1], out=gaps[1:])
            values = gaps
        coded = blosc.compress(
            values, self.compressor.encode(), self.level, blosc.SHUFFLE, self.chunk_bytes, self.dtype.itemsize
        )
        return coded + google_crc32c.value(coded).to_bytes(4, "little")


class ShardReader:
    """Reads ranges of elements of a sharded array; several threads may read at once.

    Open files and indices of shards are kept. A shard that was deleted or replaced since it was opened raises an error,
    since chunks of two stores would otherwise be mixed silently.
    """

    def __init__(self, folder: Place, layout: Layout, length: int, buffers: Buffers | None = None) -> None:
        self.folder, self.layout, self.length = folder, layout, length
        self._shards = OpenShards(layout.shard // layout.chunk)
        self._buffers = buffers or Buffers()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) in a new array. Raises SourceError if they are damaged."""
        chunk = self.layout.chunk
        first, last = start // chunk, -(-stop // chunk)
        out = np.empty(max(last - first, 0) * chunk, self.layout.dtype)
        self.read_chunks(first, last, out)
        return out[start - first * chunk : stop - first * chunk]

    def read_chunks(self, first: int, last: int, out: np.ndarray, low: int = 0, high: int = 0) -> int:
        """Decode inner chunks [first, last) into `out` [(last - first) * chunk].

        Returns how many of out[low + 1 : high] are not larger than the one before them.
        """
        per_shard, size = self.layout.shard // self.layout.chunk, self.layout.chunk
        at, descents = first, 0
        while at < last:
            number = at // per_shard
            end = min(last, (number + 1) * per_shard)
            shard = self._open(number)
            index = shard.index[at - number * per_shard : end - number * per_shard]
            shard.check_inside(index)
            index = index.astype(np.int64)
            coded = self._read_coded(shard, index)
            begins = index[:, 0] - index[0, 0]
            self._check(shard, at, begins, begins + index[:, 1], coded)
            begin, stop = (at - first) * size, (end - first) * size
            span = max(low - begin, 0), max(min(high, stop) - begin, 0)
            try:
                descents += decode_chunks(
                    coded, begins, begins + index[:, 1] - 4, out[begin:stop], self.layout.delta, *span
                )
            except ValueError as error:
                raise DamagedChunkError(f"{shard.path} is damaged ({error}): copy the store again.") from error
            if low < begin < high:  # shards are decoded one by one: compare across the border
                descents += int(out[begin] <= out[begin - 1])
            at = end
        return descents

    def ask_ahead(self, first: int, last: int) -> list[RangeAhead]:
        """Begin to read inner chunks [first, last) of shards in a bucket; see `RemoteFile.ask_ahead`."""
        per_shard, asked = self.layout.shard // self.layout.chunk, list[RangeAhead]()
        for number in range(first // per_shard, -(-last // per_shard)):
            shard = self._open(number)
            index = shard.index[max(first - number * per_shard, 0) : last - number * per_shard]
            shard.check_inside(index)
            if isinstance(shard.file, RemoteFile) and len(index):
                asked += shard.file.ask_ahead(int(index[0, 0]), int(index[-1].sum()))
        return asked

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        self._shards.close()

    def _read_coded(self, shard: "OpenShard", index: np.ndarray) -> np.ndarray:
        """uint8: the bytes of consecutive inner chunks, given their rows of the shard's index."""
        begin, ends = int(index[0, 0]), index.sum(1)
        if (index[1:, 0] != ends[:-1]).any():
            raise _misplaced(shard.path)  # `ShardWriter` writes chunks without gaps
        coded = self._buffers.take(int(ends[-1]) - begin, np.uint8)
        if not shard.file.read_into(begin, coded):
            raise SourceError(f"{shard.path} is cut short: copy the store again, or ingest it again.")
        return coded

    def _check(self, shard: "OpenShard", first: int, begins: np.ndarray, ends: np.ndarray, coded: np.ndarray) -> None:
        """Raise DamagedChunkError, naming the first inner chunk that does not match the crc32c at its end."""
        ends = ends - 4
        if (ends < begins).any():
            raise _misplaced(shard.path)
        written = coded[ends[:, None] + np.arange(4)].view("<u4")[:, 0]
        spans = zip(begins.tolist(), ends.tolist())
        # google_crc32c accepts any buffer without a copy, though its type hints say bytes
        found = np.array([google_crc32c.value(coded[begin:end]) for begin, end in spans])
        if (found != written).any():
            k = int(np.flatnonzero(found != written)[0])
            raise DamagedChunkError(
                f"{shard.path}: chunk {first + k} of {self.folder.name} is damaged (its crc32c is {found[k]:08x}, "
                f"written as {written[k]:08x}): copy the store again from where it came from, or ingest it again."
            )

    def _open(self, number: int) -> "OpenShard":
        """The shard, opened if need be. Raises SourceError if the file is missing or is not the one opened before."""
        path = self.folder / "c" / str(number)
        try:
            shard = self._shards.take(number, path)
            if not shard.file.is_current():
                raise SourceError(
                    f"{path} was replaced or changed while it was being read: open the store again, and resume from "
                    "the last checkpoint only if it holds the same cells."
                )
        except FileNotFoundError:
            raise SourceError(f"{path} is missing: copy the store again, or ingest it again.") from None
        return shard


class OpenShard:
    """An open shard file and its index: uint64 [chunks, 2], offset and length of each inner chunk."""

    def __init__(self, path: Place, n_chunks: int) -> None:
        self.path, self.file = path, open_file(path)
        tail = np.empty(n_chunks * 16 + 4, np.uint8)
        self._end = self.file.size - len(tail)
        is_whole = self._end >= 0 and self.file.read_into(self._end, tail)
        if not is_whole or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:].tobytes(), "little"):
            raise SourceError(f"{path} is damaged or cut short (its index does not match its checksum): copy it again.")
        self.index = tail[:-4].view("<u8").reshape(-1, 2)

    def check_inside(self, index: np.ndarray) -> None:
        """Raise DamagedChunkError if a chunk of these rows of the index is not in the file."""
        offsets, sizes = index.T
        # compare each one first: their sum may wrap around
        if (offsets > self._end).any() or (sizes > self._end).any() or (offsets + sizes > self._end).any():
            raise _misplaced(self.path)


class OpenShards:
    """The shards of one array, of which the most recently read stay open; for several threads.

    All arrays of the process share the limit `most_open`, since a source may have many arrays; and `kept_bytes` for
    shards in a bucket, of which only the index is kept.
    """

    most_open, kept_bytes = share_of_files(8, OPEN_SHARDS), KEPT_BYTES
    _arrays: ClassVar[weakref.WeakSet["OpenShards"]] = weakref.WeakSet()  # all that have opened a shard

    def __init__(self, n_chunks: int) -> None:
        self._n_chunks, self._lock = n_chunks, threading.Lock()
        self._shards: OrderedDict[int, OpenShard] = OrderedDict()

    def take(self, number: int, path: Place) -> OpenShard:
        """A shard by its index, opened at its path if it is not open. Raises FileNotFoundError, SourceError."""
        is_local = isinstance(path, Path)
        with self._lock:
            self._arrays.add(self)
            shard = self._shards.pop(number, None)
            if shard is not None or is_local:
                return self._keep(number, shard or OpenShard(path, self._n_chunks), is_local)
        opened = OpenShard(path, self._n_chunks)  # other threads need not wait for a bucket
        with self._lock:
            return self._keep(number, self._shards.pop(number, opened), is_local)

    def _keep(self, number: int, shard: OpenShard, is_local: bool) -> OpenShard:
        self._shards[number] = shard
        most = self.most_open if is_local else self.kept_bytes // (SHARD_BYTES + shard.index.nbytes)
        while len(self._shards) > max(most // len(self._arrays), 1):
            self._shards.popitem(last=False)  # closed when the last reader is done
        return shard

    def close(self) -> None:
        """Close all shards."""
        with self._lock:
            self._shards.clear()
            self._arrays.discard(self)


def _misplaced(path: Place) -> DamagedChunkError:
    return DamagedChunkError(f"{path} is damaged (its index names places that hold no chunk): copy the store again.")
