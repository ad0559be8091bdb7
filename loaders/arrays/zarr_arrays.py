"""One-dimensional Zarr arrays, v2 or v3, sharded or not, read without zarr-python, many chunks at once.

Supported codecs are Blosc, Zstandard, gzip and zlib, with or without crc32c; zarr-python reads all others.
"""

import itertools
import weakref
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import google_crc32c
import numcodecs
import numpy as np
import zarr
from numcodecs.abc import Codec
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata

from atlasvi.loaders.arrays.decoding import decode_chunks
from atlasvi.loaders.arrays.missing_chunks import find_missing_chunks
from atlasvi.loaders.arrays.shards import CHUNK_MISSING, OpenShards
from atlasvi.loaders.errors import DamagedChunkError, SourceError
from atlasvi.loaders.places.byte_files import ByteFile, RangeAhead, RemoteFile, open_file
from atlasvi.loaders.places.connections import share_readers
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.objects import together
from atlasvi.loaders.places.zarr_stores import find_folder
from atlasvi.loaders.rows.buffers import Buffers

BLOSC = "blosc"
OTHERS = ("zstd", "gzip", "zlib")
WINDOWS = {"gzip": 31, "zlib": 15}  # what zlib calls the two formats


@dataclass(frozen=True)
class Coding:
    """How a chunk is encoded.

    compressor  'blosc', a numcodecs codec, or None
    checked     whether the crc32c of the compressed bytes follows them
    """

    compressor: str | Codec | None
    checked: bool


def open_zarr_array(array: zarr.Array, buffers: Buffers) -> "ZarrArray | None":
    """A reader of the array, or None where zarr-python must read it."""
    folder, metadata = find_folder(array), array.metadata
    if folder is None or array.ndim != 1 or not array.shape[0]:
        return None
    if not array.dtype.isnative or array.dtype.kind not in "iuf":
        return None
    if isinstance(metadata, ArrayV2Metadata):
        coding = None if metadata.filters else _find_coding_v2(metadata.compressor)
    elif isinstance(metadata, ArrayV3Metadata):
        codecs = metadata.codecs
        if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
            sharding, configuration = codecs[0], cast(Any, codecs[0].to_dict()["configuration"])
            index = [type(codec) for codec in sharding.index_codecs]
            if configuration["index_location"] != "end" or index != [BytesCodec, Crc32cCodec]:
                return None
            codecs = sharding.codecs
        coding = find_coding_v3(codecs)
    else:
        return None
    if coding is None:
        return None
    shard = array.shards[0] if array.shards else 0
    if find_missing_chunks(array)[1]:  # zarr-python fills in zeros, if opening the source accepted the missing chunks
        return None
    return ZarrArray(array, folder, array.chunks[0], shard, coding, buffers)


def _find_coding_v2(compressor: Any) -> Coding | None:
    if compressor is None:
        return Coding(None, False)
    name = compressor.codec_id
    return Coding(BLOSC if name == BLOSC else compressor, False) if name in (BLOSC, *OTHERS) else None


def find_coding_v3(codecs: Any) -> Coding | None:
    """The coding given by a list of codecs: bytes in this machine's order, then at most one compressor; else None."""
    names = [codec.to_dict()["name"] for codec in codecs]
    if not names or names[0] != "bytes":
        return None
    # read from the metadata, since the attributes of codec objects differ between releases of zarr
    if codecs[0].to_dict().get("configuration", {}).get("endian", "little") != "little":
        return None
    checked = names[-1] == "crc32c"
    inner = names[1:-1] if checked else names[1:]
    if not inner:
        return Coding(None, checked)
    if len(inner) > 1 or inner[0] not in (BLOSC, *OTHERS[:2]):
        return None
    return Coding(BLOSC if inner[0] == BLOSC else numcodecs.get_codec({"id": inner[0]}), checked)


class NotStoredError(Exception):
    """A chunk of a shard is not stored, so it holds only the fill value; zarr-python must fill it in."""


class ZarrArray:
    """An array whose chunks are whole files, or parts of shard files; several threads may read it at once.

    chunk   elements of a chunk
    shard   elements of a shard; 0: each chunk is a file
    Open files and indices of shards are kept. A file that was replaced or written to since it was first read raises an
    error, since chunks of two arrays would otherwise be mixed silently.
    """

    def __init__(
        self, array: zarr.Array, folder: Place, chunk: int, shard: int, coding: Coding, buffers: Buffers
    ) -> None:
        self.piece = chunk
        self._folder, self._dtype, self._encode_key = folder, array.dtype, array.metadata.encode_chunk_key
        self._chunk, self._per_shard, self._coding, self._buffers = chunk, shard // chunk, coding, buffers
        self._shards = OpenShards(self._per_shard)
        self._identities: dict[int, tuple] = {}
        # objects that are chunks, while something of them was asked for ahead
        self._files = weakref.WeakValueDictionary[int, RemoteFile]()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop). Raises SourceError where a file is damaged or gone, NotStoredError."""
        if start >= stop:
            return np.empty(0, self._dtype)
        first, last = start // self._chunk, -(-stop // self._chunk)
        out = self._buffers.take((last - first) * self._chunk, self._dtype)
        pieces, at = [], first
        while at < last:
            file = at // (self._per_shard or 1)
            end = min(last, (file + 1) * (self._per_shard or 1))
            part = out[(at - first) * self._chunk : (end - first) * self._chunk]
            pieces.append(partial(self._read_piece, file, at, end, part))
            at = end
        if isinstance(self._folder, ObjectPath):  # many files are on their way at a time
            together(pieces, share_readers())
        else:
            for read_piece in pieces:
                read_piece()
        return out[start - first * self._chunk : stop - first * self._chunk]

    def ask_ahead(self, start: int, stop: int) -> list[RangeAhead]:
        """Begin to read elements [start, stop) from a bucket; see `RemoteFile.ask_ahead`."""
        if start >= stop or not isinstance(self._folder, ObjectPath):
            return []
        first, last, per_file = start // self._chunk, -(-stop // self._chunk), self._per_shard or 1
        asked = list[RangeAhead]()
        for number in range(first // per_file, -(-last // per_file)):
            path = self._folder / self._encode_key((number,))
            if self._per_shard:
                shard = self._shards.take(number, path)
                index = shard.index[max(first - number * per_file, 0) : last - number * per_file]
                shard.check_inside(index)
                file, ranges = shard.file, [(begin, begin + size) for begin, size in index.tolist()]
            else:
                file = self._open_file(path, number)
                ranges = [(0, file.size)]
            assert isinstance(file, RemoteFile)
            asked += file.ask_parts_ahead(ranges)
        return asked

    def _read_piece(self, file: int, first: int, last: int, out: np.ndarray) -> None:
        """Read and decode chunks [first, last), which are in one file, into `out`."""
        path = self._folder / self._encode_key((file,))
        try:
            if self._per_shard:
                coded, begins, ends = self._read_shard(path, file, first, last)
            else:
                coded, begins, ends = self._read_file(path, file)
        except FileNotFoundError:
            raise SourceError(f"{path} is missing: it was deleted, or never copied; copy it again.") from None
        self._decode(path, first, coded, begins, ends, out)

    def close(self) -> None:
        """Close the files."""
        self._shards.close()

    def _read_file(self, path: Place, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bytes of a chunk that is a file, and where in them it begins and ends."""
        file = self._open_file(path, number)
        if self._identities.setdefault(number, file.identity) != file.identity:
            raise replaced(path)
        coded = self._buffers.take(file.size, np.uint8)
        if not file.read_into(0, coded):
            raise _cut_short(path)
        file.close()
        return coded, np.zeros(1, np.int64), np.array([len(coded)], np.int64)

    def _open_file(self, path: Place, number: int) -> ByteFile:
        """A chunk that is a file."""
        file = self._files.get(number) or open_file(path)
        if isinstance(file, RemoteFile):
            self._files[number] = file
        return file

    def _read_shard(self, path: Place, number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bytes of inner chunks [first, last) of one shard, and where in them each begins and ends."""
        shard = self._shards.take(number, path)
        file = shard.file
        if self._identities.setdefault(number, file.identity) != file.identity or not file.is_current():
            raise replaced(path)
        index = shard.index[first % self._per_shard :][: last - first]
        if (index == CHUNK_MISSING).any():
            raise NotStoredError
        shard.check_inside(index)
        offsets, sizes = index.astype(np.int64).T
        ends = np.cumsum(sizes)
        coded = self._buffers.take(int(ends[-1]), np.uint8)
        # shards may be written in any order: consecutive bytes are read together
        cuts = [0, *(np.flatnonzero(offsets[1:] != offsets[:-1] + sizes[:-1]) + 1).tolist(), len(offsets)]
        parts = [coded[int(ends[low] - sizes[low]) : int(ends[high - 1])] for low, high in itertools.pairwise(cuts)]
        if file.read_parts(offsets[cuts[:-1]].tolist(), parts) is not None:
            raise _cut_short(path)
        return coded, ends - sizes, ends

    def _decode(
        self, path: Place, first: int, coded: np.ndarray, begins: np.ndarray, ends: np.ndarray, out: np.ndarray
    ) -> None:
        """Decode chunks, the first of which is number `first`, into `out`. Raises DamagedChunkError."""
        size = self._chunk * self._dtype.itemsize
        if self._coding.checked:
            ends = ends - 4
            for k, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist())):
                written = int.from_bytes(coded[end : end + 4].tobytes(), "little")
                if end < begin or google_crc32c.value(coded[begin:end]) != written:
                    raise damaged(path, first + k, "it does not match its checksum")
        if self._coding.compressor == BLOSC:
            try:
                decode_chunks(coded, begins, ends, out.view(f"u{out.itemsize}"), False)
            except ValueError as error:
                raise damaged(path, first, str(error)) from error
            return
        target, compressor = out.view(np.uint8), self._coding.compressor
        for k, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist())):
            content = coded[begin:end]
            if isinstance(compressor, Codec):
                try:
                    content = np.frombuffer(decode_bounded(compressor, content, size), np.uint8)
                except Exception as error:  # each codec raises errors of its own
                    raise damaged(path, first + k, str(error)) from error
            if len(content) != size:
                raise damaged(path, first + k, f"it has {len(content)} bytes where {size} should be")
            target[k * size : (k + 1) * size] = content


def decode_bounded(compressor: Codec, coded: np.ndarray, size: int) -> bytes:
    """Decode a chunk with Zstandard, gzip or zlib; of a stream longer than `size` bytes only one more byte is decoded.

    A damaged or hostile chunk can claim, or decode to, gigabytes. Raises ValueError where a Zstandard header gives
    another size.
    """
    if compressor.codec_id in WINDOWS:
        return zlib.decompressobj(WINDOWS[compressor.codec_id]).decompress(coded.data, size + 1)
    declared = read_zstd_size(coded)
    if declared not in (None, size):
        raise ValueError(f"its header says that it holds {declared} bytes where {size} should be")
    return compressor.decode(coded)


def read_zstd_size(frame: np.ndarray) -> int | None:
    """The decoded size that a Zstandard frame gives in its header, or None (RFC 8878, 3.1.1.1)."""
    if len(frame) < 5 or frame[:4].tobytes() != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = int(frame[4])
    single_segment, flag = descriptor >> 5 & 1, descriptor >> 6
    n_bytes = (single_segment, 2, 4, 8)[flag]
    begin = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    field = frame[begin : begin + n_bytes].tobytes()
    if n_bytes == 0 or len(field) < n_bytes:
        return None
    return int.from_bytes(field, "little") + (256 if n_bytes == 2 else 0)


def _cut_short(path: Place) -> SourceError:
    return SourceError(f"{path} is damaged or cut short: copy it again.")


def damaged(path: Place, chunk: int, what: str) -> DamagedChunkError:
    """The error for a chunk of a file that can't be decoded."""
    return DamagedChunkError(f"{path} is damaged or cut short (chunk {chunk}: {what}): copy it again.")


def replaced(path: Place) -> SourceError:
    """The error for a file that is not the one that was read before."""
    return SourceError(f"{path} was replaced or written to while it was being read: start again once that is done.")
