"""One background thread that stays a few items ahead of the consumer."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
_END = object()


class Prefetched(Generic[Item]):
    """Iterates over `items` in a background thread, at most `ahead` items before they are asked for.

    An error in the thread is raised to the consumer. The thread ends with the items, with `close`, and when this object
    is garbage-collected (a consumer's `break`): it holds no reference to it.
    """

    def __init__(self, items: Iterator[Item], ahead: int) -> None:
        self._queue: queue.Queue = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_produce, args=(items, self._queue, self._stop), name="atlasvi-prefetch", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        try:
            while (item := self._queue.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.close()

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        while not self._queue.empty():  # make room, so that a waiting producer sees the stop
            self._queue.get_nowait()
        self._thread.join()

    def __del__(self) -> None:
        self._stop.set()


def _produce(items: Iterator[Item], ready: queue.Queue, stop: threading.Event) -> None:
    def put(item: object) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                continue

    try:
        for item in items:
            put(item)
            if stop.is_set():
                return
        put(_END)
    except BaseException as error:
        put(error)
