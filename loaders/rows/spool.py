"""Entries in any order (CSC, Matrix Market) made readable by rows, out of core.

An external bucket sort, done at the first read: entries are appended to one file per range of rows; then each file,
small enough for memory, is sorted and appended to a CSR matrix on disk, which serves all reads. Needs about twice
the matrix's own size in the scratch folder while it sorts, once after that.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.rows.csr import canonical_csr, csr_from_entries

Entries = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]  # (rows, columns, values), a bounded piece at a time

# Sorting a bucket takes about five times its size in memory.
BUCKET_BYTES = 32 * 2**20
PREFIX = "atlasvi-spool-"
ABANDONED_S = 60  # a younger folder may belong to a process that has not locked it yet


def remove_abandoned(scratch: Path) -> None:
    """Remove the temporary folders of killed processes: no process holds their lock."""
    for left in scratch.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, removed meanwhile, or not ours
            if time.time() - left.stat().st_mtime < ABANDONED_S:
                continue
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(lock)


def _remove_locked(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


class RowSpool:
    """Rows [start, stop) of a matrix whose entries come in any order.

    entries        called once, at the first read: yields pieces of (rows, columns, values)
    n_entries      how many entries will come: sets the number of buckets, need not be exact
    value_dtype    type of the values; pieces are cast to it
    scratch        folder for the temporary files (default: the system's); removed by `close` and at interpreter exit
    bucket_bytes   a bucket that grows beyond this is split before it is sorted
    """

    spooled = True

    def __init__(
        self,
        entries: Callable[[], Entries],
        shape: tuple[int, int],
        n_entries: int,
        value_dtype: np.dtype,
        scratch: str | Path | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ):
        self.shape = shape
        self.nnz: int | None = n_entries
        self.n_buckets = 0  # buckets sorted so far
        self._entries = entries
        self._n_entries = n_entries
        self._scratch = str(scratch) if scratch is not None else tempfile.gettempdir()
        self._bucket_bytes = bucket_bytes
        n_rows, n_cols = shape
        self._record = np.dtype(
            [
                ("row", "u4" if n_rows < 2**32 else "i8"),
                ("col", "u2" if n_cols <= 2**16 else "i4"),
                ("value", value_dtype),
            ]
        )
        self._folder: Path | None = None
        self._remove: Callable[[], object] | None = None
        self._lock = threading.Lock()

    def read_rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) as canonical CSR; the first call reads and sorts all entries.

        Raises OutputError where the scratch folder has no room or can't be written.
        """
        with self._lock:
            if self._folder is None:
                self._build()
        indptr = self._read("indptr", np.dtype(np.int64), start, stop + 1)
        low, high = int(indptr[0]), int(indptr[-1])
        data = self._read("data", self._record["value"], low, high)
        indices = self._read("indices", self._record["col"], low, high)
        return canonical_csr(data, indices, indptr - low, self.shape[1])

    def read_narrow(self, start: int, stop: int) -> None:
        """None always: the caller uses `read_rows`."""

    def ask_ahead(self, start: int, stop: int) -> list:
        """Nothing is read ahead: after the first read all is on local disk."""
        return []

    def count_piece_rows(self) -> float:
        """Rows that are decoded together."""
        return 1.0

    def close(self) -> None:
        """Remove the temporary files."""
        if self._remove is not None:
            self._remove()
        self._folder = None

    def _read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        assert self._folder is not None
        # Read, not memory-mapped: mapped pages count as memory of this process.
        return np.fromfile(self._folder / name, dtype=dtype, count=stop - start, offset=start * dtype.itemsize)

    def _build(self) -> None:
        with self._writing():
            remove_abandoned(Path(self._scratch))
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._scratch))
            lock = os.open(folder, os.O_RDONLY)
            self._remove = weakref.finalize(self, _remove_locked, folder, lock)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        n_rows = self.shape[0]
        wanted = -(-self._n_entries * self._record.itemsize // self._bucket_bytes)
        bounds = np.unique(np.linspace(0, n_rows, max(1, min(wanted, n_rows)) + 1).astype(np.int64))
        try:
            self._distribute(self._records(), bounds, folder)
            self._append(folder / "indptr", np.zeros(1, dtype=np.int64))
            n_sorted = 0
            for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
                n_sorted = self._sort_bucket(folder, low, high, n_sorted)
        except BaseException:
            self._remove()
            raise
        self._folder = folder

    def _records(self) -> Iterator[np.ndarray]:
        for rows, cols, values in self._entries():
            records = np.empty(len(rows), dtype=self._record)
            records["row"], records["col"], records["value"] = rows, cols, values
            yield records

    def _distribute(self, pieces: Iterable[np.ndarray], bounds: np.ndarray, folder: Path) -> None:
        """Append each record to the file of the range [bounds[i], bounds[i + 1]) that its row lies in."""
        for records in pieces:
            bucket = np.searchsorted(bounds, records["row"], side="right") - 1
            if np.any(bucket[1:] < bucket[:-1]):
                order = np.argsort(bucket, kind="stable")
                records, bucket = records[order], bucket[order]
            cuts = np.flatnonzero(np.diff(bucket)) + 1
            for part in np.split(records, cuts):
                if len(part):
                    i = int(np.searchsorted(bounds, part["row"][0], side="right")) - 1
                    self._append(folder / f"bucket-{bounds[i]}-{bounds[i + 1]}", part)

    def _sort_bucket(self, folder: Path, low: int, high: int, n_sorted: int) -> int:
        """Move the bucket of rows [low, high) to the end of the matrix; return the entries sorted so far."""
        bucket = folder / f"bucket-{low}-{high}"
        size = bucket.stat().st_size if bucket.exists() else 0
        if size > self._bucket_bytes and high - low > 1:
            middle = (low + high) // 2
            self._distribute(self._pieces(bucket), np.array([low, middle, high]), folder)
            bucket.unlink()
            n_sorted = self._sort_bucket(folder, low, middle, n_sorted)
            return self._sort_bucket(folder, middle, high, n_sorted)
        records = np.fromfile(bucket, dtype=self._record) if size else np.empty(0, dtype=self._record)
        rows = records["row"].astype(np.int64) - low
        data, indices, indptr = csr_from_entries(rows, records["col"], records["value"], high - low, self.shape[1])
        self._append(folder / "data", data)
        self._append(folder / "indices", indices)
        self._append(folder / "indptr", indptr[1:] + n_sorted)
        bucket.unlink(missing_ok=True)
        self.n_buckets += 1
        return n_sorted + len(records)

    def _pieces(self, bucket: Path) -> Iterator[np.ndarray]:
        count = max(1, self._bucket_bytes // self._record.itemsize)
        with open(bucket, "rb") as file:
            while len(records := np.fromfile(file, dtype=self._record, count=count)):
                yield records

    def _append(self, file: Path, array: np.ndarray) -> None:
        with self._writing(), open(file, "ab") as out:
            # Not tofile, which reports a full disk without its errno.
            out.write(np.ascontiguousarray(array).view(np.uint8).data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            need = 2 * self._n_entries * self._record.itemsize / 2**30
            what = (
                "has no room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"can't be written ({error.strerror})"
            )
            raise OutputError(
                f"{self._scratch}: the folder for temporary files {what}; putting this source's rows in order takes up "
                f"to {need:.1f} GiB there. Set TMPDIR to a folder with room."
            ) from error
