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
_coming: dict[str, Future[np.ndarray]] = {}  # pieces that a thread of this process is reading


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
    low, high = widen(start, stop, size)
    out = np.empty(high - low, np.uint8)
    parts = {f"{name}-{at // PIECE:x}": out[at - low : at - low + PIECE] for at in range(low, high, PIECE)}
    with _lock:
        mine = {piece: _coming.setdefault(piece, Future()) for piece in parts if piece not in _coming}
        others = {piece: _coming[piece] for piece in parts if piece not in mine}
    fetched = 0
    try:
        missing = [piece for piece in mine if not cache.read(piece, parts[piece])]
        for piece in mine.keys() - missing:
            mine[piece].set_result(parts[piece])
        for first, last in _find_runs([list(parts).index(piece) for piece in missing]):
            begin, end = first * PIECE, min(last * PIECE, high - low)
            out[begin:end] = np.frombuffer(fetch(low + begin, low + end), np.uint8)
            fetched += end - begin
            for piece in list(parts)[first:last]:
                mine[piece].set_result(parts[piece])
                cache.write(piece, parts[piece])
    except BaseException as error:
        for future in mine.values():
            if not future.done():
                future.set_exception(error)
        raise
    finally:
        with _lock:
            for piece in mine:
                del _coming[piece]
    for piece, future in others.items():  # only now, when nothing waits for this thread any more
        parts[piece][:] = future.result()
    return out[start - low : stop - low], fetched


def _find_runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs [low, high) of consecutive ones."""
    edges = [0, *(k for k in range(1, len(numbers)) if numbers[k] != numbers[k - 1] + 1), len(numbers)]
    return [(numbers[low], numbers[high - 1] + 1) for low, high in itertools.pairwise(edges) if high > low]
