"""Parts of objects, read from the disk cache or from the bucket: whole pieces of an object, each from the bucket once.

The unit is a piece of PIECE bytes that begins at a multiple of it, so that readers that ask for other ranges share what
was read, and data that fits the cache is read from the bucket once to the byte.
"""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from atlasvi.loaders.places.disk_cache import DiskCache

PIECE = 2**22  # smaller ones make more files; of larger ones more is read than what is asked for

_lock = threading.Lock()
_coming: dict[str, Future[np.ndarray | None]] = {}  # pieces that a thread of this process is reading


def name_object(*identity: object) -> str:
    """What the names of an object's pieces begin with; `identity`: all that another object, or version, differs in."""
    return hashlib.sha256(repr((*identity, PIECE)).encode()).hexdigest()[:32]


def widen(start: int, stop: int, size: int) -> tuple[int, int]:
    """The range of the whole pieces that a range of an object of `size` bytes lies in."""
    return start // PIECE * PIECE, min(-(-stop // PIECE) * PIECE, size)


class CachedObject:
    """A version of an object, of which pieces are kept in the disk cache. Several threads may read at once.

    name   of `name_object`
    size   bytes of the object
    fetch  reads bytes [start, stop) from the bucket, as a buffer; it must not wait for a thread that reads here
    count  is told how many of the bytes that were asked for this machine had
    """

    def __init__(
        self, cache: DiskCache, name: str, size: int, fetch: Callable[[int, int], Any], count: Callable[[int], None]
    ) -> None:
        self._cache, self._name, self._size, self._fetch, self._count = cache, name, size, fetch, count

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Bytes [start, stop) as uint8, in `out` if it is given."""
        out = np.empty(stop - start, np.uint8) if out is None else out
        pieces = dict[int, np.ndarray]()  # by where they begin; those that are not wholly asked for in memory of theirs
        for low, high in self._split(start, stop):
            is_inside = start <= low and high <= stop
            pieces[low] = out[low - start : high - start] if is_inside else np.empty(high - low, np.uint8)
        with _lock:
            others = {low: coming for low in pieces if (coming := _coming.get(self._call(low))) is not None}
            mine = {low: _coming.setdefault(self._call(low), Future()) for low in pieces if low not in others}
        fetched = 0
        try:
            missing = [low for low in mine if not self._cache.read(self._call(low), pieces[low])]
            for low in mine.keys() - missing:
                mine[low].set_result(None)
            for low, high in self._join(missing):
                content = np.frombuffer(self._fetch(low, high), np.uint8)
                fetched += len(content)
                for at in range(low, high, PIECE):
                    pieces[at][:] = content[at - low : at - low + PIECE]
                    self._cache.write(self._call(at), pieces[at])
                    # not what is in the caller's memory, who may write to it
                    mine[at].set_result(pieces[at] if at < start or at + PIECE > stop else None)
        except BaseException as error:
            for future in mine.values():
                if not future.done():
                    future.set_exception(error)
            raise
        finally:
            with _lock:
                for low in mine:
                    del _coming[self._call(low)]
        for low, coming in others.items():  # only now, when nothing waits for this thread any more
            edge, piece = coming.result(), pieces[low]
            if edge is not None:
                piece[:] = edge
            elif not self._cache.read(self._call(low), piece):
                piece[:] = np.frombuffer(self._fetch(low, low + len(piece)), np.uint8)
                fetched += len(piece)
        for low in {min(pieces), max(pieces)}:
            if not (start <= low and low + len(pieces[low]) <= stop):
                first, last = max(low, start), min(low + len(pieces[low]), stop)
                out[first - start : last - start] = pieces[low][first - low : last - low]
        self._count(max(stop - start - fetched, 0))
        return out

    def read_kept(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray | None:
        """Bytes [start, stop) as uint8, in `out` if it is given; None if the disk cache lacks a part of them.

        It waits for no other thread, so that the caller needs none for it: to hand parts to threads takes longer than
        to read them.
        """
        out = np.empty(stop - start, np.uint8) if out is None else out
        for low, high in self._split(start, stop):
            first, last = max(low, start), min(high, stop)
            if not self._cache.read(self._call(low), out[first - start : last - start], first - low, high - low):
                return None
        self._count(stop - start)
        return out

    def find_missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The whole pieces of a range that are not in the cache, as ranges that do not touch."""
        return self._join([low for low, _ in self._split(start, stop) if not self._cache.has(self._call(low))])

    def _split(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Where the pieces of a range begin and end."""
        return [(low, min(low + PIECE, self._size)) for low in range(start // PIECE * PIECE, stop, PIECE)]

    def _join(self, pieces: list[int]) -> list[tuple[int, int]]:
        """Runs of consecutive pieces, given where each begins, ascending."""
        runs = list[tuple[int, int]]()
        for low in pieces:
            begin = runs.pop()[0] if runs and runs[-1][1] == low else low
            runs.append((begin, min(low + PIECE, self._size)))
        return runs

    def _call(self, low: int) -> str:
        """The name of a piece."""
        return f"{self._name}-{low // PIECE:x}"
