"""Where a name is among the rows of a table, found without reading all names: a file of sorted hashes beside the table.

Each row has an entry: the crc32 of its name in UTF-8 (zlib's), and its index. Entries are sorted by both, in blocks:

    for each block of BLOCK entries   hashes uint32, rows uint32 (uint64 in a table of more than 2**32 rows), crc32c
    at the end                        the first hash of each block uint32, crc32c

all little-endian. Different names may have one hash, so that whoever asks must compare the names of the rows found.
"""

import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pandas as pd

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.outputs import sync_file
from atlasvi.loaders.places.byte_files import ByteFile, open_file, share_of_files
from atlasvi.loaders.places.object_path import Place

BLOCK = 2**14  # entries: 131 kB are read to find one name
SLICE_ROWS = 2**16  # names in memory at a time
TOGETHER = 64  # blocks that are read at a time
BUCKET_ROWS = 2**20  # entries that are sorted in memory
MOST_BUCKETS = share_of_files(4, 256)  # open at a time: larger tables (mostly of over 2**28 rows) have larger buckets

Progress = Callable[[int], None]
"""Called with the number of rows that are done."""


def hash_names(names: Collection[str]) -> np.ndarray:
    """uint32 [names]: the crc32 of each."""
    return np.fromiter((zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names), np.uint32, len(names))


def write_name_index(
    path: Path, read_names: Callable[[int, int], pd.Index], n_rows: int, progress: Progress = lambda done: None
) -> None:
    """Write the index of the names that `read_names` returns for rows [start, stop).

    Memory does not grow with the table, up to 2**28 rows: entries are first put into files by the range of their hash,
    then each file is sorted. These files are made beside `path`, and removed.
    """
    row_dtype = _row_dtype(n_rows)
    entry = np.dtype([("hash", "<u4"), ("row", row_dtype)])
    n_buckets = min(max(-(-n_rows // BUCKET_ROWS), 1), MOST_BUCKETS)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        buckets = [open(Path(folder) / str(k), "w+b") for k in range(n_buckets)]  # noqa: SIM115  closed below
        try:
            for start in range(0, n_rows, SLICE_ROWS):
                stop = min(start + SLICE_ROWS, n_rows)
                entries = np.empty(stop - start, entry)
                entries["hash"], entries["row"] = hash_names(read_names(start, stop)), np.arange(start, stop)
                owners = entries["hash"].astype(np.uint64) * n_buckets >> np.uint64(32)
                for k in np.unique(owners).tolist():
                    buckets[k].write(entries[owners == k].tobytes())
                progress(stop)
            _write_blocks(path, _sort_buckets(buckets, entry), row_dtype)
        finally:
            for bucket in buckets:
                bucket.close()
    sync_file(path)


def _sort_buckets(buckets: list, entry: np.dtype) -> Iterator[np.ndarray]:
    for bucket in buckets:
        bucket.seek(0)
        entries = np.frombuffer(bucket.read(), entry)
        # rows are ascending in each bucket, so that a stable order by hash is the order by both
        yield entries[np.argsort(entries["hash"], kind="stable")]


def _write_blocks(path: Path, parts: Iterator[np.ndarray], row_dtype: np.dtype) -> None:
    firsts, waiting = list[int](), np.empty(0)
    with open(path, "wb") as file:

        def write(block: np.ndarray) -> None:
            content = block["hash"].tobytes() + block["row"].tobytes()
            file.write(content + _checksum(content))
            firsts.append(int(block["hash"][0]))

        for part in parts:
            waiting = np.concatenate([waiting, part]) if len(waiting) else part
            whole = len(waiting) // BLOCK * BLOCK
            for at in range(0, whole, BLOCK):
                write(waiting[at : at + BLOCK])
            waiting = waiting[whole:]
        if len(waiting):
            write(waiting)
        top = np.array(firsts, "<u4").tobytes()
        file.write(top + _checksum(top))


def _checksum(content: bytes | np.ndarray) -> bytes:
    return google_crc32c.value(content).to_bytes(4, "little")


def _row_dtype(n_rows: int) -> np.dtype:
    return np.dtype("<u4" if n_rows <= 2**32 else "<u8")


class NameIndex:
    """The file that `write_name_index` wrote for a table of `n_rows`. Raises SourceError if it is damaged."""

    def __init__(self, path: Place, n_rows: int) -> None:
        self._path, self._n_rows, self._row_dtype = path, n_rows, _row_dtype(n_rows)
        self._n_blocks, self._entry_bytes = -(-n_rows // BLOCK), 4 + self._row_dtype.itemsize
        at = n_rows * self._entry_bytes + 4 * self._n_blocks
        self._firsts = np.frombuffer(self._read(open_file(path), [(at, 4 * self._n_blocks)])[0], "<u4")

    def find_candidates(self, names: Collection[str]) -> np.ndarray:
        """Ascending int64 indices of the rows whose names have the hash of one of these; only some blocks are read."""
        hashes = np.unique(hash_names(names))
        # entries of one hash may begin at the end of the block before the first that begins with it
        low = np.maximum(np.searchsorted(self._firsts, hashes, "left") - 1, 0)
        high = np.searchsorted(self._firsts, hashes, "right")
        blocks = np.unique(np.concatenate([[0][:0], *(np.arange(a, b) for a, b in zip(low, high))])).astype(np.int64)
        found, file = [np.empty(0, np.int64)], open_file(self._path)
        for at in range(0, len(blocks), TOGETHER):
            numbers = blocks[at : at + TOGETHER].tolist()
            sizes = [min(BLOCK, self._n_rows - block * BLOCK) for block in numbers]
            starts = [block * (BLOCK * self._entry_bytes + 4) for block in numbers]
            parts = [(at, n * self._entry_bytes) for at, n in zip(starts, sizes)]
            for n, content in zip(sizes, self._read(file, parts)):
                there = np.frombuffer(content[: 4 * n], "<u4")
                rows = np.frombuffer(content[4 * n :], self._row_dtype)
                places = np.searchsorted(hashes, there)
                found.append(rows[hashes[np.minimum(places, len(hashes) - 1)] == there].astype(np.int64))
        return np.sort(np.concatenate(found))

    def _read(self, file: ByteFile, parts: list[tuple[int, int]]) -> list[np.ndarray]:
        """Parts of the file, each given by its place and its bytes without the checksum that follows them."""
        contents = [np.empty(n_bytes + 4, np.uint8) for _, n_bytes in parts]
        is_whole = file.read_parts([at for at, _ in parts], contents) is None
        if not is_whole or any(_checksum(content[:-4]) != content[-4:].tobytes() for content in contents):
            raise SourceError(f"{self._path} is damaged or cut short: copy it again from where the store came from.")
        return [content[:-4] for content in contents]
