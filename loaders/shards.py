"""One-dimensional sharded Zarr v3 arrays, written and read straight from the shard files.

The files are what any Zarr v3 reader expects (sharding_indexed, blosc, crc32c, the registered delta filter); going
past zarr-python saves its per-chunk overhead, and lets a shard be streamed to disk chunk by chunk.
Layout of a shard file: the encoded inner chunks one after the other, then (offset, length) as little-endian uint64
for each inner chunk, then the crc32c of that index.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.codecs.numcodecs import Delta

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.rows import undo_gaps
from atlasvi.loaders.tables import quiet_zarr

CHUNK_MISSING = 2**64 - 1
SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


@dataclass(frozen=True)
class Layout:
    """How a one-dimensional array is cut and coded; the same for writer and reader."""

    dtype: np.dtype
    chunk: int  # elements in an inner chunk: the unit of decoding
    shard: int  # elements in a shard file, a multiple of chunk
    delta: bool  # store differences within an inner chunk (wrapping around), so that sorted values cost few bits
    compressor: str = "lz4"
    level: int = 5
    shuffle: Literal["shuffle", "bitshuffle"] = "shuffle"  # of bytes or of bits, before compressing

    def encode(self, values: np.ndarray) -> bytes:
        """One inner chunk as bytes; `values` [chunk] of `dtype`."""
        if self.delta:
            gaps = np.empty_like(values)
            gaps[0] = values[0]
            np.subtract(values[1:], values[:-1], out=gaps[1:])
            values = gaps
        coded = blosc.compress(
            values, self.compressor.encode(), self.level, SHUFFLES[self.shuffle], 0, self.dtype.itemsize
        )
        return coded + google_crc32c.value(coded).to_bytes(4, "little")

    def decode(self, coded: memoryview, out: np.ndarray, place: str) -> None:
        """Undo `encode` into `out` [chunk]. Raises SourceError, calling the chunk `place`, if its checksum differs."""
        body, checksum = coded[:-4], int.from_bytes(coded[-4:], "little")
        found = google_crc32c.value(bytes(body))
        if found != checksum:
            raise SourceError(
                f"{place} is damaged (its crc32c is {found:08x}, written as {checksum:08x}): "
                "copy the store again from where it came from, or ingest it again."
            )
        blosc.decompress(body, out)
        if self.delta:
            undo_gaps(out)


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
                    shuffle=layout.shuffle,
                    typesize=layout.dtype.itemsize,
                ),
                Crc32cCodec(),
            ],
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )
    return Path(str(group.store_path.store.root)) / array.path  # type: ignore[attr-defined]


class ShardWriter:
    """Appends elements to a sharded array made by `create_sharded`; memory is one inner chunk."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._chunk, self._filled = np.zeros(layout.chunk, layout.dtype), 0
        self._file: BinaryIO | None = None
        self._shard = 0
        self._index: list[tuple[int, int]] = []
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
                self._write_chunk()

    def close(self) -> None:
        """Write the last, padded chunk and the index of the last shard."""
        if self._filled:
            self._chunk[self._filled :] = 0
            self._write_chunk()
        if self._index:
            self._close_shard()

    def _write_chunk(self) -> None:
        if self._file is None:
            self._file = open(self.folder / "c" / str(self._shard), "wb")  # noqa: SIM115
        coded = self.layout.encode(self._chunk)
        offset = sum(self._index[-1]) if self._index else 0
        self._file.write(coded)
        self._index.append((offset, len(coded)))
        self._filled = 0
        if len(self._index) * self.layout.chunk == self.layout.shard:
            self._close_shard()

    def _close_shard(self) -> None:
        assert self._file is not None
        n_chunks = self.layout.shard // self.layout.chunk
        index = np.full((n_chunks, 2), CHUNK_MISSING, "<u8")
        index[: len(self._index)] = self._index
        self._file.write(index.tobytes())
        self._file.write(google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file, self._index, self._shard = None, [], self._shard + 1


class ShardReader:
    """Reads runs of elements of a sharded array, by several threads at once; the indices of shards are kept."""

    def __init__(self, folder: Path, layout: Layout, length: int) -> None:
        self.folder, self.layout, self.length = folder, layout, length
        self._indices: dict[int, np.ndarray] = {}

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop), as an array of their own. Raises SourceError if they are damaged."""
        chunk = self.layout.chunk
        first, last = start // chunk, -(-stop // chunk)
        out = np.empty(max(last - first, 0) * chunk, self.layout.dtype)
        self.read_chunks(first, last, out)
        return out[start - first * chunk : stop - first * chunk]

    def read_chunks(self, first: int, last: int, out: np.ndarray) -> None:
        """Decode inner chunks [first, last) into `out` [(last - first) * chunk]."""
        per_shard, size = self.layout.shard // self.layout.chunk, self.layout.chunk
        at = first
        while at < last:
            shard = at // per_shard
            end = min(last, (shard + 1) * per_shard)
            spans, coded = self._read_coded(shard, at - shard * per_shard, end - shard * per_shard)
            for k, (begin, finish) in enumerate(spans, start=at):
                place = f"{self.folder}: chunk {k} (shard file c/{shard})"
                self.layout.decode(coded[begin:finish], out[(k - first) * size : (k - first + 1) * size], place)
            at = end

    def _read_coded(self, shard: int, first: int, last: int) -> tuple[list[tuple[int, int]], memoryview]:
        """The bytes of inner chunks [first, last) of one shard, and where each lies in them."""
        path = self.folder / "c" / str(shard)
        try:
            # opened anew for each block: microseconds against the decoding, no limit on open files is met by an
            # atlas of thousands of shards, and a store that was deleted or replaced is noticed
            with open(path, "rb", buffering=0) as file:
                if shard not in self._indices:
                    self._indices[shard] = self._read_index(file.fileno(), path)
                index = self._indices[shard][first:last]
                begin, finish = int(index[0, 0]), int(index[-1].sum())
                coded = memoryview(os.pread(file.fileno(), finish - begin, begin))
        except FileNotFoundError:
            raise SourceError(f"{path} is missing: copy the store again, or ingest it again.") from None
        if len(coded) != finish - begin:
            raise SourceError(f"{path} is cut short: copy the store again, or ingest it again.")
        return [(offset - begin, offset - begin + n) for offset, n in index.tolist()], coded

    def _read_index(self, handle: int, path: Path) -> np.ndarray:
        n_bytes = self.layout.shard // self.layout.chunk * 16 + 4
        tail = os.pread(handle, n_bytes, max(os.fstat(handle).st_size - n_bytes, 0))
        if len(tail) != n_bytes or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
            raise SourceError(f"{path} is damaged or cut short (its index does not match its checksum): copy it again.")
        return np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
