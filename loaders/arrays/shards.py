"""One-dimensional sharded Zarr v3 arrays, written and read straight from the shard files.

The files are what any Zarr v3 reader expects (sharding_indexed, blosc, crc32c, the registered delta filter); going
past zarr-python saves its per-chunk overhead, and lets a shard be streamed to disk chunk by chunk.
Layout of a shard file: the encoded inner chunks one after the other, then (offset, length) as little-endian uint64
for each inner chunk, then the crc32c of that index.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.codecs.numcodecs import Delta

from atlasvi.loaders.arrays.decoding import decode_chunks
from atlasvi.loaders.errors import DamagedChunkError, SourceError
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.zarr_warnings import quiet_zarr

CHUNK_MISSING = 2**64 - 1
OPEN_SHARDS = 32  # of an array, kept open; an atlas has thousands, a process may open about a thousand files


@dataclass(frozen=True)
class Layout:
    """How a one-dimensional array is cut and coded; the same for writer and reader."""

    dtype: np.dtype
    chunk: int  # elements in an inner chunk: the unit of decoding
    shard: int  # elements in a shard file, a multiple of chunk
    delta: bool  # store differences within an inner chunk (wrapping around), so that sorted values cost few bits
    compressor: str = "lz4"
    level: int = 5

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded inner chunk; blosc is told to compress them as one block (its default is smaller)."""
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


def create_sharded(group: zarr.Group, name: str, length: int, layout: Layout) -> Path:
    """Make the metadata of array `name` [length] in a group on local disk; returns its folder."""
    with quiet_zarr():
        array = group.create_array(
            name,
            shape=(length,),
            dtype=layout.dtype,
            chunks=(layout.chunk,),
            shards=(layout.shard,),
            filters=[Delta(dtype=layout.dtype.str)] if layout.delta else [],
            compressors=[
                BloscCodec(
                    cname=layout.compressor,  # type: ignore[arg-type]
                    clevel=layout.level,
                    shuffle="shuffle",
                    typesize=layout.dtype.itemsize,
                    blocksize=layout.chunk_bytes,
                ),
                Crc32cCodec(),
            ],
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )
    return Path(str(group.store_path.store.root)) / array.path  # type: ignore[attr-defined]


class ChunkEncoder:
    """Encodes a part of an array that begins at any element: whole inner chunks go to a file, one after the other.

    start  number of the part's first element. Afterwards `sizes` are the bytes of each chunk, `head` and `tail` the
    elements before the first whole chunk and after the last.
    """

    def __init__(self, layout: Layout, start: int, file: BinaryIO) -> None:
        self._layout, self._file = layout, file
        self._wanted = -start % layout.chunk  # elements that the head still lacks
        self._head, self._rest = [np.empty(0, layout.dtype)], np.empty(0, layout.dtype)
        self.sizes: list[int] = []

    def append(self, values: np.ndarray) -> None:
        """Add values; they must fit `layout.dtype`."""
        head, values = values[: self._wanted], values[self._wanted :]
        self._head.append(head.astype(self._layout.dtype))
        self._wanted -= len(head)
        values = np.concatenate([self._rest, values.astype(self._layout.dtype, copy=False)])
        whole = len(values) // self._layout.chunk * self._layout.chunk
        for at in range(0, whole, self._layout.chunk):
            coded = self._layout.encode(values[at : at + self._layout.chunk])
            self._file.write(coded)
            self.sizes.append(len(coded))
        self._rest = values[whole:].copy()

    @property
    def head(self) -> np.ndarray:
        """Elements before the first whole chunk."""
        return np.concatenate(self._head)

    @property
    def tail(self) -> np.ndarray:
        """Elements after the last whole chunk."""
        return self._rest


class ShardWriter:
    """Appends elements to a sharded array made by `create_sharded`; memory is one inner chunk."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._chunk, self._filled = np.zeros(layout.chunk, layout.dtype), 0
        self._file: BinaryIO | None = None
        self._shard = 0
        self._sizes: list[int] = []
        self._checksum = 0  # crc32c of the shard so far
        self.files: dict[str, tuple[int, str]] = {}  # of the shards that are done: bytes and crc32c
        (folder / "c").mkdir(exist_ok=True)

    def append(self, values: np.ndarray) -> None:
        """Add values; they must fit `layout.dtype`."""
        at = 0
        while at < len(values):
            take = min(len(values) - at, self.layout.chunk - self._filled)
            self._chunk[self._filled : self._filled + take] = values[at : at + take]
            self._filled += take
            at += take
            if self._filled == self.layout.chunk:
                self._write_chunk(self.layout.encode(self._chunk))
                self._filled = 0

    def append_encoded(self, path: Path, sizes: Sequence[int]) -> None:
        """Add the inner chunks that a `ChunkEncoder` wrote to a file; the elements so far must fill whole chunks.

        Raises DamagedChunkError if one does not match its checksum.
        """
        assert not sizes or self._filled == 0
        with open(path, "rb") as file:
            for size in sizes:
                coded = file.read(size)
                if google_crc32c.value(coded[:-4]) != int.from_bytes(coded[-4:], "little"):
                    raise DamagedChunkError(f"{path} is damaged (a chunk does not match its checksum).")
                self._write_chunk(coded)

    def close(self) -> None:
        """Write the last, padded chunk and the index of the last shard."""
        if self._filled:
            self._chunk[self._filled :] = 0
            self._write_chunk(self.layout.encode(self._chunk))
        if self._sizes:
            self._close_shard()

    def _write_chunk(self, coded: bytes) -> None:
        if self._file is None:
            self._file = open(self.folder / "c" / str(self._shard), "wb")  # noqa: SIM115
        self._write(coded)
        self._sizes.append(len(coded))
        if len(self._sizes) * self.layout.chunk == self.layout.shard:
            self._close_shard()

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)
        self._checksum = google_crc32c.extend(self._checksum, content)

    def _close_shard(self) -> None:
        assert self._file is not None
        index = np.full((self.layout.shard // self.layout.chunk, 2), CHUNK_MISSING, "<u8")
        index[: len(self._sizes), 1] = self._sizes
        index[: len(self._sizes), 0] = np.cumsum(self._sizes) - self._sizes
        self._write(index.tobytes())
        self._write(google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
        self.files[str(self._shard)] = self._file.tell(), f"{self._checksum:08x}"
        self._checksum = 0
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file, self._sizes, self._shard = None, [], self._shard + 1


class ShardReader:
    """Reads runs of elements of a sharded array, by several threads at once.

    Handles and indices of shards are kept. A shard that was deleted or replaced since it was opened is noticed: mixing
    the chunks of two stores would be silent.
    """

    def __init__(self, folder: Path, layout: Layout, length: int, buffers: Buffers | None = None) -> None:
        self.folder, self.layout, self.length = folder, layout, length
        self._shards: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._buffers = buffers or Buffers()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop), as an array of their own. Raises SourceError if they are damaged."""
        chunk = self.layout.chunk
        first, last = start // chunk, -(-stop // chunk)
        out = np.empty(max(last - first, 0) * chunk, self.layout.dtype)
        self.read_chunks(first, last, out)
        return out[start - first * chunk : stop - first * chunk]

    def read_chunks(self, first: int, last: int, out: np.ndarray, low: int = 0, high: int = 0) -> int:
        """Decode inner chunks [first, last) into `out` [(last - first) * chunk].

        Returns how many of out[low:high], the first left out, are not larger than the one before them.
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
            if low < begin < high:  # each shard is decoded by itself
                descents += int(out[begin] <= out[begin - 1])
            at = end
        return descents

    def close(self) -> None:
        """Let go of the files; they are opened again when needed."""
        with self._lock:
            self._shards.clear()

    def _read_coded(self, shard: "OpenShard", index: np.ndarray) -> np.ndarray:
        """uint8: the bytes of neighbouring inner chunks, whose rows of the shard's index are given."""
        begin, ends = int(index[0, 0]), index.sum(1)
        if (index[1:, 0] != ends[:-1]).any():
            raise _misplaced(shard.path)  # `ShardWriter` writes chunk after chunk
        coded = self._buffers.take(int(ends[-1]) - begin, np.uint8)
        if os.preadv(shard.handle, [coded.data], begin) != len(coded):
            raise SourceError(f"{shard.path} is cut short: copy the store again, or ingest it again.")
        return coded

    def _check(self, shard: "OpenShard", first: int, begins: np.ndarray, ends: np.ndarray, coded: np.ndarray) -> None:
        """Raises DamagedChunkError, naming the first inner chunk whose crc32c is not the one written at its end."""
        ends = ends - 4
        if (ends < begins).any():
            raise _misplaced(shard.path)
        written = coded[ends[:, None] + np.arange(4)].view("<u4")[:, 0]
        spans = zip(begins.tolist(), ends.tolist())
        # google_crc32c takes any buffer and copies none, though its types say bytes
        found = np.array([google_crc32c.value(coded[begin:end]) for begin, end in spans])
        if (found != written).any():
            k = int(np.flatnonzero(found != written)[0])
            raise DamagedChunkError(
                f"{shard.path}: chunk {first + k} of {self.folder.name} is damaged (its crc32c is {found[k]:08x}, "
                f"written as {written[k]:08x}): copy the store again from where it came from, or ingest it again."
            )

    def _open(self, number: int) -> "OpenShard":
        """The shard, opened now or before; raises SourceError if it is not there, or no longer the one opened."""
        path = self.folder / "c" / str(number)
        try:
            with self._lock:
                shard = self._shards.pop(number, None) or OpenShard(path, self.layout.shard // self.layout.chunk)
                self._shards[number] = shard
                if len(self._shards) > OPEN_SHARDS:
                    self._shards.popitem(last=False)  # closed once nobody reads from it
            if identify(os.stat(path)) != shard.identity:
                raise SourceError(
                    f"{path} was replaced or changed while it was being read: open the store again, and go on from the "
                    "last checkpoint only if it holds the same cells."
                )
        except FileNotFoundError:
            raise SourceError(f"{path} is missing: copy the store again, or ingest it again.") from None
        return shard


class OpenShard:
    """A shard file held open, with its index: uint64 [chunks, 2], offset and length of each inner chunk."""

    def __init__(self, path: Path, n_chunks: int) -> None:
        self.path, self.handle = path, os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self.handle)
        self.identity = identify(status)
        n_bytes = n_chunks * 16 + 4
        tail = os.pread(self.handle, n_bytes, max(status.st_size - n_bytes, 0))
        if len(tail) != n_bytes or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
            raise SourceError(f"{path} is damaged or cut short (its index does not match its checksum): copy it again.")
        self.index = np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
        self._end = status.st_size - n_bytes

    def check_inside(self, index: np.ndarray) -> None:
        """Raises DamagedChunkError if a chunk of these rows of the index is not in the file."""
        offsets, sizes = index.T
        # each by itself first: their sum may wrap around
        if (offsets > self._end).any() or (sizes > self._end).any() or (offsets + sizes > self._end).any():
            raise _misplaced(self.path)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


def _misplaced(path: Path) -> DamagedChunkError:
    return DamagedChunkError(f"{path} is damaged (its index names places that hold no chunk): copy the store again.")


def identify(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a file from another one at its path, or from itself before it was written to."""
    return status.st_ino, status.st_size, status.st_mtime_ns
