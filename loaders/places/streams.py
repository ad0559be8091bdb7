"""An object as a file of bytes, for libraries that read files: h5py, gzip, zipfile, pandas.

It is read in aligned pages, of which the ones used last are kept. Where pages are read one after the other, the next
ones are asked for ahead.
"""

import io
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from atlasvi.loaders.places.byte_files import RemoteFile
from atlasvi.loaders.places.connections import share_threads
from atlasvi.loaders.places.object_path import ObjectPath

PAGE_BYTES = 2**20  # HDF5 reads metadata in pieces of some hundred bytes that lie near each other
KEPT_PAGES = 64
AHEAD_PAGES = 8


class ObjectStream(io.RawIOBase):
    """A seekable file of an object's bytes; several threads may use it, one at a time. Raises FileNotFoundError.

    Memory: KEPT_PAGES pages of PAGE_BYTES.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.file, self._at, self._lock = RemoteFile(path), 0, threading.Lock()
        self.name = str(path)
        self._pages: OrderedDict[int, Future[Any]] = OrderedDict()
        self._last = -2  # the page that was read last

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
            n = max(min(len(target), self.file.size - self._at), 0)
            done = 0
            while done < n:
                number, begin = divmod(self._at, PAGE_BYTES)
                page = memoryview(self._take_page(number))[begin : begin + n - done]
                target[done : done + len(page)] = page
                done, self._at = done + len(page), self._at + len(page)
        return done

    def _take_page(self, number: int) -> Any:
        ahead = AHEAD_PAGES if number == self._last + 1 else 0
        n_pages = -(-self.file.size // PAGE_BYTES)
        for wanted in range(number, min(number + ahead + 1, n_pages)):
            if wanted not in self._pages:
                self._pages[wanted] = share_threads().submit(self._read_page, wanted)
        self._pages.move_to_end(number)
        while len(self._pages) > KEPT_PAGES:
            self._pages.popitem(last=False)
        if number != self._last:
            self._last = number
        try:
            return self._pages[number].result()
        except BaseException:
            self._pages.pop(number, None)  # asked for again if it is wanted again
            raise

    def _read_page(self, number: int) -> Any:
        start = number * PAGE_BYTES
        return self.file.read_bytes(start, min(start + PAGE_BYTES, self.file.size))
