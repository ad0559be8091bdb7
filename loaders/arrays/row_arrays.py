"""Rows of Zarr arrays by index or by slice, from the chunks that hold them alone; each chunk read is compared with its
crc32c.

The layout of our stores is read here without zarr-python, whose overhead for each chunk is larger than the reading:
arrays of numbers or text, split by rows alone, whose chunks are files or parts of shard files, compressed
or not. zarr-python reads all others.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise
from typing import Any, Protocol

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numba import njit
from numcodecs.abc import Codec
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.metadata import ArrayV3Metadata

from atlasvi.loaders.arrays.array_checks import LARGEST_CHUNK
from atlasvi.loaders.arrays.missing_chunks import find_missing_chunks
from atlasvi.loaders.arrays.shards import CHUNK_MISSING, OpenShard, OpenShards
from atlasvi.loaders.arrays.zarr_arrays import (
    BLOSC,
    Coding,
    damaged,
    decode_bounded,
    find_coding_v3,
    read_zstd_size,
    replaced,
)
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.byte_files import open_file
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.zarr_stores import find_folder
from atlasvi.loaders.rows.buffers import Buffers

THREADS = min(4, os.cpu_count() or 1)  # two read scattered rows in two thirds of the time of one
REMOTE_THREADS = 16  # they wait for answers
Chosen = slice | np.ndarray
"""Rows [start, stop), or ascending int64 indices of rows."""


class RowArray(Protocol):
    """An array that is read by rows."""

    def read(self, rows: Chosen) -> np.ndarray:
        """The chosen rows; text as objects. Raises SourceError where a file is damaged or gone."""


def open_rows(array: zarr.Array) -> RowArray:
    """A reader of an array's rows, from its files where their layout is known, else through zarr-python."""
    metadata, folder = array.metadata, find_folder(array)
    if not isinstance(metadata, ArrayV3Metadata) or folder is None or not array.size:
        return ZarrRows(array)
    if array.chunks[1:] != array.shape[1:] or find_missing_chunks(array)[1]:  # zarr-python fills in what is missing
        return ZarrRows(array)
    codecs: Any = metadata.codecs
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        index = [type(codec) for codec in codecs[0].index_codecs]
        if index != [BytesCodec, Crc32cCodec] or codecs[0].to_dict()["configuration"]["index_location"] != "end":  # type: ignore[index, call-overload]
            return ZarrRows(array)
        codecs = codecs[0].codecs
    is_text = codecs[0].to_dict()["name"] == "vlen-utf8" and array.ndim == 1
    coding = find_coding_v3((BytesCodec(), *codecs[1:]) if is_text else codecs)
    if coding is None or coding.compressor == BLOSC:
        return ZarrRows(array)
    if is_text:
        return TextRows(array, folder, coding)
    return NumberRows(array, folder, coding) if array.dtype.isnative and array.dtype.kind in "biuf" else ZarrRows(array)


class ZarrRows:
    """Rows of any array, read by zarr-python; whole chunks are decoded."""

    def __init__(self, array: zarr.Array) -> None:
        self._array = array

    def read(self, rows: Chosen) -> np.ndarray:
        """The chosen rows; text as objects."""
        if isinstance(rows, slice):
            return self._plain(self._array[rows])
        parts = [self._plain(self._array[:0])]
        for low, high in split_rows(rows, self._array.chunks[0]):
            first = int(rows[low])
            part: Any = self._array[first : int(rows[high - 1]) + 1]
            parts.append(self._plain(part)[rows[low:high] - first])
        return np.concatenate(parts)

    def _plain(self, values: Any) -> np.ndarray:
        array = np.asarray(values)
        return array.astype(object) if array.dtype.kind in "UTO" else array


class _ChunkFiles:
    """The files of an array, and in them the chunks, of `chunk` rows each.

    A file that was replaced since it was first read raises an error, since chunks of two arrays would be mixed.
    """

    def __init__(self, array: zarr.Array, folder: Place, coding: Coding) -> None:
        self._folder, self._ndim, self._encode_key = folder, array.ndim, array.metadata.encode_chunk_key
        self._coding, self._identities, self._buffers = coding, dict[int, tuple](), Buffers()
        self._is_remote = isinstance(folder, ObjectPath)
        self.n_rows, self.chunk, self._sharded = array.shape[0], array.chunks[0], array.shards is not None
        self.file_rows = array.shards[0] if array.shards else self.chunk
        # a file is opened for each read, which costs little; in a bucket that would be a request, and another for its
        # index, so that these are kept
        self._shards = OpenShards(self.file_rows // self.chunk) if self._is_remote and self._sharded else None

    def split(self, rows: Chosen) -> Iterator[tuple[int, int, np.ndarray]]:
        """(place of the first of them in the answer, number of a file, the chosen rows counted from its first)."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(self.n_rows)
            for number in range(start // self.file_rows, -(-stop // self.file_rows) if stop > start else 0):
                first = number * self.file_rows
                here = np.arange(max(start, first), min(stop, first + self.file_rows))
                yield int(here[0]) - start, number, here - first
        else:
            for low, high in split_rows(rows, self.file_rows):
                number = int(rows[low]) // self.file_rows
                yield low, number, rows[low:high] - number * self.file_rows

    def count(self, rows: Chosen) -> int:
        """How many rows are chosen."""
        return len(range(*rows.indices(self.n_rows))) if isinstance(rows, slice) else len(rows)

    def read_coded(self, number: int, chunks: np.ndarray) -> tuple[Place, np.ndarray, np.ndarray, np.ndarray]:
        """(path of a file, bytes, where in them each of the file's `chunks` begins, and ends), without checksums."""
        path = self._folder / self._encode_key((number, *[0] * (self._ndim - 1)))
        try:
            opened = self._open(path, number)
        except FileNotFoundError:
            raise SourceError(f"{path} is missing: it was deleted, or never copied; copy it again.") from None
        if self._identities.setdefault(number, opened.file.identity) != opened.file.identity:
            raise replaced(path)
        index = opened.index[chunks]
        if (index == CHUNK_MISSING).any():
            raise damaged(path, int(chunks[0]), "a chunk that has rows is not stored")
        opened.check_inside(index)
        offsets, sizes = index.astype(np.int64).T
        ends = np.cumsum(sizes)
        content = self._buffers.take(int(ends[-1]), np.uint8)
        cuts = [0, *(np.flatnonzero(offsets[1:] != offsets[:-1] + sizes[:-1]) + 1).tolist(), len(offsets)]
        # consecutive bytes are read together
        parts = [content[int(ends[low] - sizes[low]) : int(ends[high - 1])] for low, high in pairwise(cuts)]
        if (late := opened.file.read_parts(offsets[cuts[:-1]].tolist(), parts)) is not None:
            raise damaged(path, int(chunks[cuts[late]]), "it is cut short")
        begins = ends - sizes
        if self._coding.checked:
            if (sizes < 4).any():
                raise damaged(path, int(chunks[int(np.argmin(sizes))]), "it is shorter than its checksum")
            ends = ends - 4
            written = content[ends[:, None] + np.arange(4)].view("<u4")[:, 0].tolist()
            for k, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist())):
                if google_crc32c.value(content[begin:end]) != written[k]:
                    raise damaged(path, int(chunks[k]), "it does not match its checksum")
        return path, content, begins, ends

    def _open(self, path: Place, number: int) -> "OpenShard | _OpenChunk":
        if self._shards is not None:
            return self._shards.take(number, path)
        return OpenShard(path, self.file_rows // self.chunk) if self._sharded else _OpenChunk(path)

    def decode(self, path: Place, chunk: int, coded: np.ndarray, size: int | None) -> np.ndarray:
        """The bytes of a chunk; `size`: how many, None if only the chunk says it. Raises DamagedChunkError."""
        if not isinstance(self._coding.compressor, Codec):
            return coded
        if size is None:
            size = read_zstd_size(coded)
            if size is None or size > LARGEST_CHUNK:
                raise damaged(path, chunk, f"its header says that it holds {size} bytes")
        try:
            content = np.frombuffer(decode_bounded(self._coding.compressor, coded, size), np.uint8)
        except Exception as error:  # each codec raises errors of its own
            raise damaged(path, chunk, str(error)) from error
        if len(content) != size:
            raise damaged(path, chunk, f"it has {len(content)} bytes where {size} should be")
        return content


class NumberRows(_ChunkFiles):
    """Rows of an array of numbers or truth values, [n] or [n, ...]."""

    def __init__(self, array: zarr.Array, folder: Place, coding: Coding) -> None:
        super().__init__(array, folder, coding)
        self._dtype, self._trailing = array.dtype, array.shape[1:]
        # chunks may be 4 bytes of checksum apart, so values are copied as items that fit such distances
        self._item = np.dtype(f"u{min(array.dtype.itemsize, 4)}")
        self._row_items = array.dtype.itemsize * math.prod(self._trailing) // self._item.itemsize

    def read(self, rows: Chosen) -> np.ndarray:
        """The chosen rows. Raises SourceError where a file is damaged or gone."""
        out = np.empty((self.count(rows), self._row_items), self._item)

        def read_file(part: tuple[int, int, np.ndarray]) -> None:
            at, number, here = part
            first, last = int(here[0]), int(here[-1])
            if last - first == len(here) - 1:
                chunks = np.arange(first // self.chunk, last // self.chunk + 1)
                whole = self._read_chunks(number, chunks).reshape(-1, self._row_items)
                first -= int(chunks[0]) * self.chunk
                out[at : at + len(here)] = whole[first : first + len(here)]
            else:
                owners = here // self.chunk
                is_new = np.append(True, owners[1:] != owners[:-1])
                content = self._read_chunks(number, owners[is_new]).reshape(-1, self.chunk, self._row_items)
                out[at : at + len(here)] = content[np.cumsum(is_new) - 1, here % self.chunk]

        _do_all(read_file, self.split(rows), self._is_remote)
        return out.reshape(-1).view(self._dtype).reshape(len(out), *self._trailing)

    def _read_chunks(self, number: int, chunks: np.ndarray) -> np.ndarray:
        """Items of these chunks of a file, [chunks, items of a chunk]; a view of what was read if nothing is coded."""
        size = self.chunk * self._row_items * self._item.itemsize
        path, content, begins, ends = self.read_coded(number, chunks)
        if self._coding.compressor is not None:
            spans = zip(chunks.tolist(), begins.tolist(), ends.tolist())
            parts = [self.decode(path, chunk, content[begin:end], size) for chunk, begin, end in spans]
            return np.stack([part.view(self._item) for part in parts])
        if (ends - begins != size).any():
            k = int(np.argmax(ends - begins != size))
            raise damaged(path, int(chunks[k]), f"it has {int(ends[k] - begins[k])} bytes where {size} should be")
        return content.view(self._item).reshape(len(chunks), -1)[:, : size // self._item.itemsize]


class TextRows(_ChunkFiles):
    """Rows of an array of text [n]: of a chunk, only the chosen texts become str."""

    def read(self, rows: Chosen) -> np.ndarray:
        """The chosen rows, as objects. Raises SourceError where a file is damaged or gone."""
        out = np.empty(self.count(rows), object)

        def read_file(part: tuple[int, int, np.ndarray]) -> None:
            at, number, here = part
            owners = here // self.chunk
            cuts = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(here)]
            path, content, begins, ends = self.read_coded(number, owners[cuts[:-1]])
            for low, high, begin, end in zip(cuts[:-1], cuts[1:], begins.tolist(), ends.tolist()):
                chunk = int(owners[low])
                texts = self.decode(path, chunk, content[begin:end], None)
                places = here[low:high] - chunk * self.chunk
                out[at + low : at + high] = self._pick(path, chunk, texts, places)

        _do_all(read_file, self.split(rows), self._is_remote)
        return out

    def _pick(self, path: Place, chunk: int, content: np.ndarray, places: np.ndarray) -> list[str] | np.ndarray:
        """Texts from the bytes of a chunk: their number, then the length and the UTF-8 of each."""
        try:
            if len(places) * 4 > self.chunk:  # most of them
                return VLEN_TEXT.decode(content.tobytes())[places]
            spans = np.empty((len(places), 2), np.int64)
            if not _find_texts(content, places, spans):
                raise ValueError("its texts are longer than it is")
            plain = content.tobytes()
            return [plain[begin:end].decode() for begin, end in spans.tolist()]
        except (ValueError, IndexError) as error:
            raise damaged(path, chunk, str(error)) from error


VLEN_TEXT = numcodecs.VLenUTF8()


@njit(nogil=True, cache=True)
def _find_texts(content: np.ndarray, places: np.ndarray, spans: np.ndarray) -> bool:
    """Write where each of the texts at ascending `places` begins and ends; False if the content ends before."""
    at, text = 4, 0
    for k in range(len(places)):
        while True:
            if at + 4 > len(content):
                return False
            length = 0
            for byte in range(4):
                length |= int(content[at + byte]) << 8 * byte
            begin, at = at + 4, at + 4 + length
            text += 1
            if text > places[k]:
                break
        if at > len(content):
            return False
        spans[k, 0], spans[k, 1] = begin, at
    return True


class _OpenChunk:
    """A file that is one chunk, with the interface of `OpenShard`."""

    def __init__(self, path: Place) -> None:
        self.path, self.file = path, open_file(path)
        self.index = np.array([[0, self.file.size]], np.uint64)

    def check_inside(self, index: np.ndarray) -> None:
        """The chunk is the file."""


def _do_all(function: Callable[[Any], None], parts: Iterator[Any], is_remote: bool) -> None:
    """Call a function with each part; several at a time, in threads: some wait for the disk or for a bucket, others
    decompress.
    """
    n_threads, fewest = (REMOTE_THREADS, 2) if is_remote else (THREADS, 2 * THREADS)
    group = list(islice(parts, 2 * n_threads))
    if len(group) < fewest:
        for part in group:
            function(part)
        return
    with ThreadPoolExecutor(n_threads) as threads:
        while group:  # not all at once, because a part holds the indices of its rows
            for _ in threads.map(function, group):
                pass
            group = list(islice(parts, 4 * n_threads))


def split_rows(rows: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Runs [low, high) of ascending rows that lie in the same `size` rows."""
    owners = rows // size
    cuts = [0, *(np.flatnonzero(owners[1:] != owners[:-1]) + 1).tolist(), len(rows)]
    return ((low, high) for low, high in pairwise(cuts) if high > low)
