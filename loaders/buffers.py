"""Arrays that are used again when they are let go of: fresh memory costs page faults, as much as decoding into it."""

import threading
import weakref

import numpy as np

KEPT = 64  # buffers of one type that wait to be used again, at most


class Buffers:
    """Lends arrays; one that nobody refers to any more (nor to a tensor made of it) can be lent again."""

    def __init__(self) -> None:
        self._free: dict[str, list[np.ndarray]] = {}
        self._lock = threading.Lock()

    def take(self, length: int, dtype: np.dtype | type) -> np.ndarray:
        """An array [length] of the type, not cleared."""
        key = np.dtype(dtype).str
        with self._lock:
            free = self._free.setdefault(key, [])
            fits = [k for k, array in enumerate(free) if len(array) >= length]
            whole = free.pop(fits[-1]) if fits else np.empty(int(length * 1.1) + 1024, dtype)
            while len(free) > KEPT:
                free.pop(0)
        # through a memoryview: numpy would have slices of a plain view refer to `whole`, past what is lent
        lent = np.frombuffer(whole.view(np.uint8).data[: length * whole.itemsize], whole.dtype)
        # appending is atomic, so the garbage collector may do it at any moment, the lock held or not
        weakref.finalize(lent, free.append, whole).atexit = False
        return lent
