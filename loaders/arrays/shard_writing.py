"""One-dimensional sharded Zarr v3 arrays written directly to shard files (their layout: see shards.py)."""

import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import BinaryIO

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.codecs.numcodecs import Delta

from atlasvi.loaders.arrays.shards import CHUNK_MISSING, Layout
from atlasvi.loaders.errors import DamagedChunkError
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.places.staging import write_local_file
from atlasvi.loaders.places.zarr_stores import find_folder
from atlasvi.loaders.zarr_warnings import quiet_zarr


def create_sharded(group: zarr.Group, name: str, length: int, layout: Layout) -> Place:
    """Write the metadata of array `name` [length] in a group of a folder; returns the array's folder."""
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
    folder = find_folder(array)
    assert folder is not None
    return folder


class ChunkEncoder:
    """Encodes a part of an array that begins at any element; whole inner chunks go to a file, in their order.

    start  index of the part's first element
    In the end, `sizes` are the bytes of each chunk, `head` and `tail` the elements before the first whole chunk and
    after the last.
    """

    def __init__(self, layout: Layout, start: int, file: BinaryIO) -> None:
        self._layout, self._file = layout, file
        self._wanted = -start % layout.chunk  # elements still missing in the head
        self._head, self._rest = [np.empty(0, layout.dtype)], np.empty(0, layout.dtype)
        self.sizes: list[int] = []

    def append(self, values: np.ndarray) -> None:
        """Append values; they must fit `layout.dtype`."""
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
    """Appends elements to a sharded array made by `create_sharded`; memory is one inner chunk.

    A shard for a bucket is a temporary file until it is finished.
    """

    def __init__(self, folder: Place, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._chunk, self._filled = np.zeros(layout.chunk, layout.dtype), 0
        self._file: BinaryIO | None = None
        self._finish = ExitStack()
        self._shard = 0
        self._sizes: list[int] = []
        self._checksum = 0  # crc32 of the current shard so far; its crc32c would be a constant: see manifest.py
        self.files: dict[str, tuple[int, str]] = {}  # of the finished shards: bytes and checksum, as lists have them
        (folder / "c").mkdir(exist_ok=True)

    def append(self, values: np.ndarray) -> None:
        """Append values; they must fit `layout.dtype`."""
        at = 0
        while at < len(values):
            take = min(len(values) - at, self.layout.chunk - self._filled)
            self._chunk[self._filled : self._filled + take] = values[at : at + take]
            self._filled += take
            at += take
            if self._filled == self.layout.chunk:
                self._write_chunk(self.layout.encode(self._chunk))
                self._filled = 0

    def append_encoded(self, path: Place, sizes: Sequence[int]) -> None:
        """Append the inner chunks that a `ChunkEncoder` wrote to a file; elements so far must fill whole chunks.

        Raises DamagedChunkError if one does not match its checksum.
        """
        assert not sizes or self._filled == 0
        with path.open("rb") as file:
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
            path = self._finish.enter_context(write_local_file(self.folder / "c" / str(self._shard)))
            self._file = open(path, "wb")  # noqa: SIM115
        self._write(coded)
        self._sizes.append(len(coded))
        if len(self._sizes) * self.layout.chunk == self.layout.shard:
            self._close_shard()

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(content)
        self._checksum = zlib.crc32(content, self._checksum)

    def _close_shard(self) -> None:
        assert self._file is not None
        index = np.full((self.layout.shard // self.layout.chunk, 2), CHUNK_MISSING, "<u8")
        index[: len(self._sizes), 1] = self._sizes
        index[: len(self._sizes), 0] = np.cumsum(self._sizes) - self._sizes
        self._write(index.tobytes())
        self._write(google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
        self.files[str(self._shard)] = self._file.tell(), f"crc32:{self._checksum:08x}"
        self._checksum = 0
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._finish.close()
        self._file, self._sizes, self._shard = None, [], self._shard + 1
