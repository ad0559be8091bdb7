"""Arrays whose memory is reused: page faults of fresh memory cost as much time as decoding into it."""

import threading
import weakref
from collections.abc import Callable

import numpy as np


class Buffers:
    """Lends arrays; memory that no array or tensor refers to any more is lent again.

    allocate  called with (length, dtype) for new memory, for example pinned memory for copies to a GPU
    """

    def __init__(self, allocate: Callable[[int, np.dtype], np.ndarray] = np.empty) -> None:
        self._allocate = allocate
        self._free: dict[np.dtype, list[np.ndarray]] = {}
        self._lent: dict[int, tuple[weakref.ref, list[np.ndarray], np.ndarray]] = {}
        self._lock = threading.Lock()

    def take(self, length: int, dtype: np.dtype | type) -> np.ndarray:
        """An array [length] of the dtype, uninitialised."""
        dtype = np.dtype(dtype)
        with self._lock:
            free = self._free.setdefault(dtype, [])
            fits = [(len(array), k) for k, array in enumerate(free) if len(array) >= length]
            if fits:
                whole = free.pop(min(fits)[1])
            else:
                del free[:1]  # too small: drop it, or unused memory would grow with every larger request
                whole = self._allocate(int(length * 1.1) + 1024, dtype)
        # through a memoryview: slices of a plain numpy view would refer to `whole`, and the finaliser would run early
        lent = np.frombuffer(whole.data[:length], dtype)
        reference = weakref.ref(lent, self._take_back)
        self._lent[id(reference)] = reference, free, whole
        return lent

    def _take_back(self, reference: weakref.ref) -> None:
        # dictionary and list change in one step each, since the garbage collector may call this at any moment
        _, free, whole = self._lent.pop(id(reference))
        free.append(whole)
