"""An object as a file of bytes, for libraries that read files: h5py, gzip, zipfile, pandas.

What is read in one place and then in another, as HDF5 reads its metadata, is asked for in single pages. What is read
forward is asked for in runs of pages that become longer, the next one ahead.
"""

import io
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

import numpy as np

from atlasvi.loaders.places.byte_files import PIECE_BYTES, RemoteFile
from atlasvi.loaders.places.connections import share_threads
from atlasvi.loaders.places.object_path import ObjectPath

PAGE_BYTES = 2**16
KEPT_BYTES = 2**26  # of an open file


class ObjectStream(io.RawIOBase):
    """A seekable file of an object's bytes; several threads may use it, one at a time. Raises FileNotFoundError.

    Memory: KEPT_BYTES, and the runs that are on their way.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.file, self.name = RemoteFile(path), str(path)
        self._at, self._lock = 0, threading.Lock()
        self._runs: OrderedDict[int, tuple[int, Future[Any]]] = OrderedDict()  # first page: (its end, content)
        self._run_of: dict[int, int] = {}  # page: first page of its run
        self._longest = max(PIECE_BYTES // PAGE_BYTES, 1)
        self._next, self._length = 0, 1  # the page after the last run that was asked for, and the pages of the next

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.file.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, out: Any) -> int:
        """Fill `out` with the bytes at the position; returns how many, fewer only at the end."""
        target = memoryview(out).cast("B")
        with self._lock:
            n, done = max(min(len(target), self.file.size - self._at), 0), 0
            if n > PIECE_BYTES:  # more than a run: into its place, by several requests at a time
                self.file.read_into(self._at, np.frombuffer(target[:n], np.uint8))
                self._at += n
                return n
            while done < n:
                begin, content = self._find(self._at // PAGE_BYTES)
                part = content[self._at - begin : self._at - begin + n - done]
                target[done : done + len(part)] = part
                done, self._at = done + len(part), self._at + len(part)
        return done

    def _find(self, page: int) -> tuple[int, memoryview]:
        """(where it begins, content) of the run that a page is in."""
        if page not in self._run_of:
            self._length = min(2 * self._length, self._longest) if page == self._next else 1
            self._ask(page)
        first = self._run_of[page]
        self._runs.move_to_end(first)
        if self._length > 1 and self._next not in self._run_of and self._runs[first][0] == self._next:
            self._length = min(2 * self._length, self._longest)
            self._ask(self._next)  # ahead: the last run is being read
        try:
            return first * PAGE_BYTES, memoryview(self._runs[first][1].result())
        except BaseException:
            self._drop(first)  # asked for again if it is wanted again
            raise

    def _ask(self, page: int) -> None:
        """Ask for a run of pages that are not there."""
        n_pages = -(-self.file.size // PAGE_BYTES)
        stop = page
        while stop < min(page + self._length, n_pages) and stop not in self._run_of:
            self._run_of[stop] = page
            stop += 1
        self._next = stop
        if stop > page:
            span = page * PAGE_BYTES, min(stop * PAGE_BYTES, self.file.size)
            self._runs[page] = stop, share_threads().submit(self.file.read_bytes, *span)
        while sum(stop - first for first, (stop, _) in self._runs.items()) * PAGE_BYTES > KEPT_BYTES:
            self._drop(next(iter(self._runs)))

    def _drop(self, first: int) -> None:
        stop, _ = self._runs.pop(first)
        for page in range(first, stop):
            del self._run_of[page]
