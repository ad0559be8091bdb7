"""Pieces of objects kept in a folder on local disk, for all processes of a machine; the least recently used go first.

A piece is a file of its own, which is written aside and renamed, and holds checksums of its parts, so that a part can
be read alone: a process may be killed at any moment, and what is damaged is read from the bucket again. The time of a
file's last change is that of its last use, to a minute. A lock and a file with the sum of all sizes keep the folder as
small as was asked for; nobody waits for that lock for long, because a piece need not be kept.
"""

import fcntl
import itertools
import logging
import math
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import google_crc32c
import numpy as np

from atlasvi.loaders.errors import OutputError, SourceError

FOLDER, GIGABYTES = "ATLASVI_CACHE", "ATLASVI_CACHE_GB"
USUAL_GB = 100.0
BELOW = "atlasvi-cache-2"  # in the folder that was given, which may hold other files
MAGIC = b"atlasvi2"
HEADER = struct.Struct("<8sII")  # MAGIC, bytes of the content, crc32c of all checksums below xor that of the name
PART = 2**17  # bytes of the content for each checksum; the checksums, uint32, lie between header and content
LEFT = 0.95  # of the limit, once pieces have been removed: all are listed for it, which should be seldom
KEPT_SECONDS = 86_400.0
NOTED_SECONDS = 60.0  # after which the next use of a piece sets the time of its file again
MOST_NOTED = 100_000  # pieces whose last such time is remembered
PAUSE_SECONDS = 60.0  # after which a cache that is full, or locked by a stopped process, is looked at again
LOCK_SECONDS = 1.0
ABANDONED_SECONDS = 3600.0  # after which a file that was not renamed is one of a killed process

log = logging.getLogger(__name__)


class DiskCache:
    """Named pieces of bytes on local disk, `limit` bytes at most.

    folder  made if need be; several processes may use it at once
    A full cache removes the pieces that were used longest ago, but not those used since this process began (and in the
    last day): of data that is larger than the cache, read in another order in each epoch, a part stays here, while
    removing the least recently used one for each new one would leave hardly any that is used again.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit, self.began = folder / BELOW, limit, time.time()
        self.takes_more = True  # until the disk is full
        self._paused_until = 0.0
        self._used = dict[str, float]()  # when the time of a piece was last set, by this process
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is read may be for its user alone
            (self.folder / "new").mkdir(exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise OutputError(
                f"{folder}: the cache can't be kept there ({error.strerror}): give another folder of this machine's "
                "own disk, or leave --cache out."
            ) from None

    def read(self, name: str, out: np.ndarray, start: int = 0, size: int | None = None) -> bool:
        """Fill uint8 `out` with the bytes of a piece from `start` on; False if it is not here, or damaged there.

        size  bytes of the whole piece; None: as many as `out` has
        """
        size = len(out) if size is None else size
        path, head, stop = self._place(name), bytearray(_head_bytes(size)), start + len(out)
        # a checksum is of a whole part: what `before` and `after` get are the rest of the first and of the last one
        before = np.empty(start % PART, np.uint8)
        after = np.empty(min(-(-stop // PART) * PART, size) - stop, np.uint8)
        buffers = [part.data for part in (before, out, after) if len(part)]
        n_bytes = len(before) + len(out) + len(after)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if start < PART:
                    is_whole = os.preadv(handle, [head, *buffers], 0) == len(head) + n_bytes
                else:
                    is_whole = os.preadv(handle, [head], 0) == len(head)
                    is_whole &= os.preadv(handle, buffers, len(head) + start - len(before)) == n_bytes
                self._note_use(name, handle)
            finally:
                os.close(handle)
        except OSError:
            return False
        if is_whole and _is_right(name, size, head, start, before, out, after):
            return True
        with suppress(OSError):  # cut short when the machine lost its power, or not ours
            os.unlink(path)
        return False

    def _note_use(self, name: str, handle: int) -> None:
        """Set the time of a piece's file, unless this process did so less than NOTED_SECONDS ago."""
        now = time.monotonic()
        if now - self._used.get(name, -math.inf) > NOTED_SECONDS:
            if len(self._used) >= MOST_NOTED:
                self._used.clear()
            self._used[name] = now
            with suppress(OSError):  # another user's file
                os.utime(handle)

    def has(self, name: str) -> bool:
        """Whether a piece is here, damaged or not."""
        return os.path.exists(self._place(name))

    def write(self, name: str, content: np.ndarray) -> None:
        """Keep a piece, if there is room; a disk that is full ends that, with a warning."""
        if not self.takes_more or time.monotonic() < self._paused_until:
            return
        # no name by the process: in containers many have the same number, and a killed one leaves its file
        new, path = self.folder / "new" / os.urandom(8).hex(), self._place(name)
        try:
            parts = (content[at : at + PART] for at in range(0, len(content), PART))
            sums = np.array([google_crc32c.value(part) for part in parts], "<u4").tobytes()
            if self._reserve(new, _head_bytes(len(content)) + len(content)):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(new, "r+b") as file:
                    file.write(_make_header(name, len(content), sums) + sums)
                    file.write(content.data)
                os.replace(new, path)
        except OSError as error:
            with suppress(OSError):
                new.unlink()
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        if self.takes_more:
            log.warning(
                "%s: nothing more is kept in the cache (%s); what is missing is read from the bucket",
                self.folder.parent,
                error.strerror or error,
            )
        self.takes_more = False

    def _place(self, name: str) -> str:
        return f"{self.folder}/{name[:2]}/{name}"

    def _reserve(self, new: Path, n_bytes: int) -> bool:
        """Make a file of so many bytes, which will be written; False if there is no room for it."""
        with self._lock, self._hold() as is_held:
            if not is_held:
                self._pause()
            if time.monotonic() < self._paused_until:
                return False
            handle = os.open(self.folder / "size", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                text = os.pread(handle, 32, 0)
                total = int(text) if text.isdigit() else self._remove(0)  # after a crash it may be cut short
                if total + n_bytes > self.limit:
                    total = self._remove(n_bytes)
                has_room = total + n_bytes <= self.limit
                if has_room:
                    with open(new, "xb") as file:  # here, so that another process that counts all finds it
                        file.truncate(n_bytes)
                else:
                    self._pause()
                os.pwrite(handle, b"%020d" % (total + n_bytes * has_room), 0)
            finally:
                os.close(handle)
        return has_room

    def _pause(self) -> None:
        self._paused_until = time.monotonic() + PAUSE_SECONDS

    def _remove(self, n_bytes: int) -> int:
        """Remove old pieces until so many bytes fit; returns the bytes of those that are left."""
        found = sorted(self._list())
        total, used = sum(size for _, size, _ in found), max(self.began, time.time() - KEPT_SECONDS)
        if total + n_bytes > self.limit:
            for last_use, size, path in found:
                if last_use >= used or total + n_bytes <= LEFT * self.limit:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size
        return total

    def _list(self) -> Iterator[tuple[float, int, str]]:
        """(time of the last use, size, path) of all pieces, and of those that are being written, which are in use.

        What a killed process was writing is removed.
        """
        # first what may be renamed meanwhile, which then is found in one place at least
        for folder in ["new", *(name for name in os.listdir(self.folder) if len(name) == 2)]:
            for entry in os.scandir(self.folder / folder):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if folder != "new":
                        yield status.st_mtime, status.st_size, entry.path
                    elif status.st_mtime < time.time() - ABANDONED_SECONDS:
                        os.unlink(entry)
                    else:
                        yield math.inf, status.st_size, entry.path

    @contextmanager
    def _hold(self) -> Iterator[bool]:
        """Hold the lock of the folder, if it is to be had soon: who holds it may have been stopped."""
        handle, until = os.open(self.folder / "lock", os.O_RDWR), time.monotonic() + LOCK_SECONDS
        try:
            is_held = _lock(handle)
            while not is_held and time.monotonic() < until:
                time.sleep(0.005)
                is_held = _lock(handle)
            yield is_held
        finally:
            os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file, if no other process has locked it; to close it unlocks it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _head_bytes(size: int) -> int:
    """Bytes of the header and the checksums of a piece, given those of its content."""
    return HEADER.size + 4 * -(-size // PART)


def _make_header(name: str, size: int, sums: bytes) -> bytes:
    # the name is in the checksum, so that the file of another piece is not taken for this one
    return HEADER.pack(MAGIC, size, google_crc32c.value(sums) ^ google_crc32c.value(name.encode()))


def _is_right(
    name: str, size: int, head: bytearray, start: int, before: np.ndarray, out: np.ndarray, after: np.ndarray
) -> bool:
    """Whether the header is this piece's, and the checksums are those of `before`, `out` and `after`.

    `out` are its bytes from `start` on; `before` and `after` complete the first and the last part.
    """
    sums = bytes(head[HEADER.size :])
    if head[: HEADER.size] != _make_header(name, size, sums):
        return False
    ends = [*range(PART - len(before), len(out), PART), len(out)]  # in `out`: where parts end
    # google_crc32c accepts arrays without a copy, though its type hints say bytes
    found = google_crc32c.value(before)
    for k, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        found = google_crc32c.extend(found if k == 0 else 0, out[begin:end])
        if end == len(out):
            found = google_crc32c.extend(found, after)
        if found.to_bytes(4, "little") != sums[4 * (start // PART + k) :][:4]:
            return False
    return True


def use_cache(folder: str | Path | None, gigabytes: float | None = None) -> None:
    """Keep what is read from buckets in a folder of this machine's disk, in this process and those that it starts.

    gigabytes  the most that it may take, in 10**9 bytes; None: 100
    folder     None: keep nothing
    Raises OutputError if the folder can't be made, SourceError for a size that is not above 0.
    """
    for variable, value in (
        (FOLDER, None if folder is None else Path(folder).absolute()),
        (GIGABYTES, gigabytes),
    ):
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = str(value)
    find_cache()


def find_cache() -> DiskCache | None:
    """The cache of `use_cache`, or of the environment variables ATLASVI_CACHE and ATLASVI_CACHE_GB; else None.

    Raises as `use_cache`.
    """
    folder = os.environ.get(FOLDER)
    return _open(os.path.abspath(folder), os.environ.get(GIGABYTES) or str(USUAL_GB)) if folder else None


@lru_cache(maxsize=8)
def _open(folder: str, gigabytes: str) -> DiskCache:
    try:
        limit = int(float(gigabytes) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise SourceError(f"The size of the cache is {gigabytes!r} (--cache-gb, {GIGABYTES}): give gigabytes above 0.")
    return DiskCache(Path(folder), limit)
