"""Parts of objects, read from the disk cache or from the bucket: whole pieces of an object, each from the bucket once.

The unit is a piece of PIECE bytes that begins at a multiple of it, so that readers that ask for other ranges share what
was read, and data that fits the cache is read from the bucket once to the byte.
"""

import hashlib
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from atlasvi.loaders.places.disk_cache import DiskCache

PIECE = 2**20  # smaller ones make more files, larger ones read more that nobody asked for; mountpoint-s3 has the same

_lock = threading.Lock()
_coming: dict[str, Future[memoryview]] = {}  # pieces that a thread of this process is reading


def name_object(*identity: object) -> str:
    """What the names of an object's pieces begin with; `identity`: all that another object, or version, differs in."""
    return hashlib.sha256(repr((*identity, PIECE)).encode()).hexdigest()[:32]


def widen(start: int, stop: int, size: int) -> tuple[int, int]:
    """The range of the whole pieces that a range of an object of `size` bytes lies in."""
    return start // PIECE * PIECE, min(-(-stop // PIECE) * PIECE, size)


def read_cached(
    cache: DiskCache, name: str, size: int, start: int, stop: int, fetch: Callable[[int, int], Any]
) -> tuple[np.ndarray, int]:
    """(bytes [start, stop) of an object as uint8, how many of them came from this machine).

    name   of `name_object`
    size   bytes of the object
    fetch  reads bytes [low, high) from the bucket; it must not wait for a thread that is here
    """
    numbers = range(start // PIECE, -(-stop // PIECE))
    with _lock:
        mine = {k: _coming.setdefault(_name(name, k), Future()) for k in numbers if _name(name, k) not in _coming}
        others = {k: _coming[_name(name, k)] for k in numbers if k not in mine}
    fetched = 0
    try:
        missing = []
        for k, piece in mine.items():
            if (content := cache.read(_name(name, k))) is not None:
                piece.set_result(content)
            else:
                missing.append(k)
        for low, high in _find_runs(missing):
            content = memoryview(fetch(low * PIECE, min(high * PIECE, size)))
            fetched += len(content)
            for k in range(low, high):
                mine[k].set_result(content[(k - low) * PIECE : (k - low + 1) * PIECE])
                cache.write(_name(name, k), mine[k].result())
    except BaseException as error:
        for piece in mine.values():
            if not piece.done():
                piece.set_exception(error)
        raise
    finally:
        with _lock:
            for k in mine:
                del _coming[_name(name, k)]
    # only now, when nothing waits for this thread any more
    out = np.empty(stop - start, np.uint8)
    for k in numbers:
        bytes_of_it, begin = np.asarray((mine.get(k) or others[k]).result()), k * PIECE
        low, high = max(begin, start), min(begin + len(bytes_of_it), stop)
        out[low - start : high - start] = bytes_of_it[low - begin : high - begin]
    return out, fetched


def _name(name: str, number: int) -> str:
    return f"{name}-{number:x}"


def _find_runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs [low, high) of consecutive ones."""
    edges = [0, *(k for k in range(1, len(numbers)) if numbers[k] != numbers[k - 1] + 1), len(numbers)]
    return [(numbers[low], numbers[high - 1] + 1) for low, high in itertools.pairwise(edges) if high > low]
