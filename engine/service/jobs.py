"""Questions that are being answered: each in a thread, a bounded number at once, each for a bounded time.

A thread can't be ended from outside, so work asks whether it should go on (`Job.check`): before each slice of cells is
read, whenever progress is reported, and with each piece of the answer that is sent.
"""

import asyncio
import contextvars
import logging
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from atlasvi.loaders.errors import AtlasviWarning

PIECES = 4  # of an answer that wait for a slow client
WAIT_SECONDS = 0.1  # after which a thread that waits for a slow client looks whether its time is over
END = b""
log = logging.getLogger(__name__)
_current: contextvars.ContextVar["Job"] = contextvars.ContextVar("job")


class Ended(BaseException):
    """The question is not worth an answer any more: the client has gone, or the time is over.

    No Exception: what reads files or evaluates expressions would take it for an error of its own.
    """


class Busy(Exception):
    """All threads are busy, and too many questions wait already."""


class TooLate(Exception):
    """The answer, or its beginning, took longer than a question may take."""


class Closing(Exception):
    """The service ends before the answer does."""


class Job:
    """A question that is being answered by a thread, which sends pieces of the answer to the event loop.

    warnings  sentences that the client must know, which came up so far
    """

    def __init__(self, seconds: float) -> None:
        self.warnings: list[str] = []
        self._seconds, self._until = seconds, float("inf")
        self._ended = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._room = threading.Semaphore(PIECES)

    def run(self, work: Callable[["Job"], None]) -> None:
        """Do the work in this thread, and send its error, or the end."""
        _current.set(self)
        self._until = time.monotonic() + self._seconds
        last: bytes | Exception = END
        try:
            self.check()
            work(self)
        except Ended:
            last = Closing()  # nobody reads this, unless it is the service that ends
        except Exception as error:
            last = error
        except BaseException as error:  # such as a panic of a library that is written in Rust
            last = RuntimeError(f"{type(error).__name__}: {error}")
        self._put(last)

    def check(self, *_: Any) -> None:
        """Raise Ended if the client has gone, TooLate if the time is over."""
        if self._ended.is_set():
            raise Ended
        if time.monotonic() > self._until:
            raise TooLate

    def send(self, piece: bytes) -> None:
        """Send a piece of the answer, and wait while the client has not taken earlier ones."""
        self.check()
        if piece:
            while not self._room.acquire(timeout=WAIT_SECONDS):
                self.check()
            self._put(piece)

    def _put(self, piece: bytes | Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def end(self) -> None:
        """The client has gone: the thread stops at its next check."""
        self._ended.set()

    async def next_piece(self) -> bytes:
        """The next piece of the answer; empty at its end. Raises the error of the work."""
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        self._room.release()
        return piece

    async def pieces(self, first: bytes) -> AsyncIterator[bytes]:
        """All pieces of the answer. Where the work fails in between, the connection is cut, so that a client knows."""
        try:
            while first:
                yield first
                first = await self.next_piece()
        finally:
            self.end()


class Jobs:
    """The threads that answer questions, and the questions that wait for one.

    at_once, waiting  how many questions are computed, and how many more may wait
    seconds           the longest time that one may take, and that it may wait
    """

    def __init__(self, at_once: int, waiting: int, seconds: float) -> None:
        self._most, self._seconds = at_once + waiting, seconds
        self._threads = ThreadPoolExecutor(at_once, "question")
        self._running: dict[Job, Future[None]] = {}

    def start(self, work: Callable[[Job], None], at_end: Callable[[], Any] = lambda: None) -> Job:
        """Answer a question in a thread; `at_end` is called when it does no more. Raises Busy if too many wait."""
        if len(self._running) >= self._most:
            raise Busy
        job = Job(self._seconds)
        done = self._threads.submit(contextvars.copy_context().run, job.run, work)
        self._running[job] = done
        loop = asyncio.get_running_loop()

        def forget(_: Future[None]) -> None:
            at_end()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._running.pop, job, None)

        done.add_done_callback(forget)
        return job

    def end(self, job: Job) -> None:
        """The client of a question has gone."""
        job.end()
        if job in self._running:
            self._running[job].cancel()  # if it still waits

    async def first_piece(self, job: Job, gone: Callable[[], Awaitable[Any]]) -> bytes | None:
        """The first piece of the answer; None if the client goes before.

        gone  waits until the client has gone
        Raises the error of the work, and TooLate if it does not notice itself that its time is over.
        """
        piece, left = asyncio.ensure_future(job.next_piece()), asyncio.ensure_future(gone())
        try:
            # the time to wait for a thread, that of the work, and some more for the next check
            await asyncio.wait({piece, left}, timeout=2 * self._seconds + 5, return_when=asyncio.FIRST_COMPLETED)
            if piece.done():
                return piece.result()
            if left.done():
                return None
            raise TooLate
        finally:
            if not piece.done():  # also if this task is cancelled
                self.end(job)
            piece.cancel()
            left.cancel()

    def close(self) -> None:
        """End all questions."""
        for job in list(self._running):
            self.end(job)
        self._threads.shutdown(wait=False, cancel_futures=True)


@contextmanager
def collect_warnings() -> Iterator[None]:
    """Meanwhile, what the library warns of goes to the answer of the question that it came up in."""
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            job = _current.get(None)
            if job is None:
                before(message, category, *where)
            elif issubclass(category, AtlasviWarning) and str(message) not in job.warnings:
                job.warnings.append(str(message))

        warnings.simplefilter("always", AtlasviWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
