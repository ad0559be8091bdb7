"""Arrays that are used again when they are let go of: fresh memory costs page faults, as much as decoding into it."""

import threading
import weakref
from collections.abc import Callable

import numpy as np


class Buffers:
    """Lends arrays; one that nobody refers to any more (nor to a tensor made of it) can be lent again.

    allocate  called with (length, dtype) for memory that is not there yet: say, memory that a GPU can read by itself
    """

    def __init__(self, allocate: Callable[[int, np.dtype], np.ndarray] = np.empty) -> None:
        self._allocate = allocate
        self._free: dict[np.dtype, list[np.ndarray]] = {}
        self._lent: dict[int, tuple[weakref.ref, list[np.ndarray], np.ndarray]] = {}
        self._lock = threading.Lock()

    def take(self, length: int, dtype: np.dtype | type) -> np.ndarray:
        """An array [length] of the type, not cleared."""
        dtype = np.dtype(dtype)
        with self._lock:
            free = self._free.setdefault(dtype, [])
            fits = [(len(array), k) for k, array in enumerate(free) if len(array) >= length]
            if fits:
                whole = free.pop(min(fits)[1])
            else:
                del free[:1]  # too small: it gives way, or what waits would grow with every larger request
                whole = self._allocate(int(length * 1.1) + 1024, dtype)
        # through a memoryview: numpy would have slices of a plain view refer to `whole`, past what is lent
        lent = np.frombuffer(whole.data[:length], dtype)
        reference = weakref.ref(lent, self._take_back)
        self._lent[id(reference)] = reference, free, whole
        return lent

    def _take_back(self, reference: weakref.ref) -> None:
        # dictionary and list are changed in one step each: the garbage collector may call this at any moment
        _, free, whole = self._lent.pop(id(reference))
        free.append(whole)
