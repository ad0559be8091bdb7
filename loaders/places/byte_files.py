"""Files whose bytes are read by position into existing memory, by several threads: on local disk, or objects.

Both know which version of the file they opened. On local disk the caller asks whether it is still there, which costs
little; each request for a part of an object names the version that it must be of.
"""

import os
import resource
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.loaders.places.cached_parts import PIECE, widen
from atlasvi.loaders.places.connections import share_threads
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.objects import find_cached, read_part, together
from atlasvi.loaders.places.ranges import merge_ranges, split_range

PIECE_BYTES = 2**22  # of one request: long enough that its latency is small beside it, short enough to be repeated
AHEAD_BYTES = 2**26  # of a process: what was asked for ahead, and is on its way or waits to be used


def share_of_files(part: int, most: int) -> int:
    """One in `part` of the files that this process may open (`ulimit -n`), at least 1 and at most `most`."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if limit == resource.RLIM_INFINITY else max(min(limit // part, most), 1)


def read_into(handle: int, offset: int, out: np.ndarray) -> bool:
    """Fill contiguous `out` with an open file's bytes from `offset` on; returns False if the file ends before."""
    waiting = out.view(np.uint8).data
    while len(waiting):  # one call reads at most 2 GiB
        n = os.preadv(handle, [waiting], offset)
        if n == 0:
            return False
        offset, waiting = offset + n, waiting[n:]
    return True


def identify(status: os.stat_result) -> tuple[int, int, int]:
    """Values that differ between two files at one path, and for one file before and after it is written to."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class LocalFile:
    """An open file. The docstrings of its members hold for every `ByteFile`.

    size      bytes
    identity  values that differ between two versions of the file
    Raises FileNotFoundError.
    """

    is_remote = False

    def __init__(self, path: Path) -> None:
        self.path, self._handle = path, os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        status = os.fstat(self._handle)
        self.size: int = status.st_size
        self.identity: tuple[int, ...] = identify(status)

    def read_into(self, offset: int, out: np.ndarray) -> bool:
        """Fill contiguous `out` with the bytes from `offset` on; returns False if the file ends before."""
        return read_into(self._handle, offset, out)

    def read_parts(self, offsets: Sequence[int], outs: Sequence[np.ndarray]) -> int | None:
        """Fill several arrays, each with the bytes from its offset on; returns the index of one that ends too early."""
        return next((k for k, (at, out) in enumerate(zip(offsets, outs)) if not read_into(self._handle, at, out)), None)

    def is_current(self) -> bool:
        """Whether the file at the path is still the one that was opened. Raises FileNotFoundError."""
        return identify(os.stat(self.path)) == self.identity

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def __del__(self) -> None:
        if hasattr(self, "_handle") and os is not None:  # when Python ends, modules can be gone before this
            self.close()


class RangeAhead:
    """Bytes [start, stop) of an object that were asked for before they are needed; forgotten when nobody holds this."""

    _lock, _n_bytes = threading.RLock(), 0  # of all that there are, in this process

    def __init__(self, file: "RemoteFile", start: int, stop: int) -> None:
        self.file, self.start, self.stop = file, start, stop
        self.content = share_threads().submit(file.read_bytes, start, stop)

    @classmethod
    def reserve(cls, n_bytes: int) -> bool:
        """Count the bytes of one that will be made; False if there are AHEAD_BYTES already."""
        with cls._lock:
            has_room = RangeAhead._n_bytes + n_bytes <= AHEAD_BYTES
            RangeAhead._n_bytes += n_bytes * has_room
            return has_room

    def __del__(self) -> None:
        if hasattr(self, "content"):
            self.content.cancel()
        with self._lock:
            RangeAhead._n_bytes -= self.stop - self.start


class RemoteFile:
    """An object, read by parts of at most PIECE_BYTES, several at a time. Raises StorageError if it was replaced."""

    is_remote = True

    def __init__(self, path: ObjectPath) -> None:
        self.path, self.status = path, path.stat()
        self.size, self.identity = self.status.st_size, (self.status.version, self.status.st_size)
        self._cached = find_cached(path.address, path.storage, self.status)
        self._ahead: weakref.WeakSet[RangeAhead] = weakref.WeakSet()
        self._lock = threading.Lock()

    def read_into(self, offset: int, out: np.ndarray) -> bool:
        """Fill contiguous `out` with the bytes from `offset` on; returns False if the object ends before."""
        return self.read_parts([offset], [out]) is None

    def read_parts(self, offsets: Sequence[int], outs: Sequence[np.ndarray]) -> int | None:
        """Fill several arrays; parts that lie near each other are read by one request."""
        targets = [out.view(np.uint8) for out in outs]
        ranges = [(int(at), int(at) + len(target)) for at, target in zip(offsets, targets)]
        for k, (_, stop) in enumerate(ranges):
            if stop > self.size:
                return k
        missing, ahead = list[partial[None]](), list[partial[None]]()
        for start, stop, members in merge_ranges(ranges, PIECE_BYTES):
            filled = [(ranges[k][0], targets[k]) for k in members]
            for low, high, asked in self._find_ahead(start, stop):
                if asked is not None:
                    ahead.append(partial(self._fill, low, high, filled, asked))
                elif not self._fill_from_cache(low, high, filled):
                    missing += [partial(self._fill, *part, filled) for part in self._split(low, high)]
        together(missing, share_threads())
        for fill in ahead:  # not in the threads, one of which it may wait for
            fill()
        return None

    def read_bytes(self, start: int, stop: int) -> Any:
        """Bytes [start, stop), from the disk cache or by one request, as a buffer."""
        if self._cached is not None:
            return self._cached.read(start, stop)
        return read_part(self.path.address, self.path.storage, self.status, start, stop)

    def ask_ahead(self, start: int, stop: int) -> list[RangeAhead]:
        """Begin to read bytes that will be needed; they are kept as long as what is returned.

        Beyond AHEAD_BYTES of the process nothing is asked for. What was asked for already is part of what is returned,
        and what the disk cache has is not.
        """
        found = list(self._find_ahead(start, stop))
        missing = [(low, high) for low, high, asked in found if asked is None]
        if self._cached is not None:
            missing = [part for low, high in missing for part in self._cached.find_missing(low, high)]
        parts = [part for low, high in missing for part in self._split(low, high)]
        new = [RangeAhead(self, low, high) for low, high in parts if RangeAhead.reserve(high - low)]
        with self._lock:
            self._ahead.update(new)
        return new + [asked for _, _, asked in found if asked is not None]

    def ask_parts_ahead(self, ranges: Sequence[tuple[int, int]]) -> list[RangeAhead]:
        """The same for several ranges; those that lie near each other are asked for together."""
        runs = merge_ranges(ranges, PIECE_BYTES)
        return [asked for start, stop, _ in runs for asked in self.ask_ahead(start, stop)]

    def _split(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The ranges of requests for bytes [start, stop), which share no piece of the cache."""
        if self._cached is None:
            return split_range(start, stop, PIECE_BYTES)
        wide = split_range(*widen(start, stop, self.size), PIECE_BYTES, PIECE)
        return [(max(low, start), min(high, stop)) for low, high in wide]

    def _find_ahead(self, start: int, stop: int) -> Iterator[tuple[int, int, RangeAhead | None]]:
        """A range as parts that were asked for ahead, and others (None)."""
        with self._lock:
            ranges = sorted(self._ahead, key=lambda asked: asked.start)
        at = start
        for asked in ranges:
            low, high = max(asked.start, at), min(asked.stop, stop)
            if low < high:
                if at < low:
                    yield at, low, None
                yield low, high, asked
                at = high
        if at < stop:
            yield at, stop, None

    def _fill(
        self, low: int, high: int, targets: Sequence[tuple[int, np.ndarray]], asked: RangeAhead | None = None
    ) -> None:
        """Read bytes [low, high), and copy them into each of the arrays, given where in the object it begins."""
        content = None
        if asked is None and self._cached is not None and (out := _find_only(low, high, targets)) is not None:
            self._cached.read(low, high, out)
            return
        if asked is not None:
            with suppress(Exception):  # it is asked for again, which raises the error if it does not pass
                content = np.frombuffer(asked.content.result(), np.uint8)[low - asked.start : high - asked.start]
        if content is None:
            content = np.frombuffer(self.read_bytes(low, high), np.uint8)
        _copy(content, low, high, targets)

    def _fill_from_cache(self, low: int, high: int, targets: Sequence[tuple[int, np.ndarray]]) -> bool:
        """The same as `_fill` if the disk cache has all of these bytes; returns whether it has."""
        out = _find_only(low, high, targets)
        content = None if self._cached is None else self._cached.read_kept(low, high, out)
        if content is not None and out is None:
            _copy(content, low, high, targets)
        return content is not None

    def is_current(self) -> bool:
        """True: each request names the version that was opened."""
        return True

    def close(self) -> None:
        """Nothing is open."""


def _find_only(low: int, high: int, targets: Sequence[tuple[int, np.ndarray]]) -> np.ndarray | None:
    """Where bytes [low, high) of a file go if they all go into one array, given where in the file it begins."""
    if len(targets) > 1:
        return None
    ((begin, target),) = targets
    return target[low - begin : high - begin]


def _copy(content: np.ndarray, low: int, high: int, targets: Sequence[tuple[int, np.ndarray]]) -> None:
    """Copy bytes [low, high) of a file into each of the arrays, given where in the file it begins."""
    for begin, target in targets:
        first, last = max(begin, low), min(begin + len(target), high)
        if first < last:
            target[first - begin : last - begin] = content[first - low : last - low]


ByteFile = LocalFile | RemoteFile
"""A file whose bytes are read by position."""


def open_file(path: Place) -> ByteFile:
    """Open a file to read its bytes by position. Raises FileNotFoundError, StorageError."""
    return RemoteFile(path) if isinstance(path, ObjectPath) else LocalFile(path)
