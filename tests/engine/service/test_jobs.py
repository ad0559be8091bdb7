"""Threads that answer questions: pieces of answers, ends, errors. Needs neither a store nor a server."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from atlasvi.engine.service.jobs import PIECES, Busy, Closing, Job, Jobs, TooLate


def run(act: Callable[[Jobs], Any], at_once: int = 1, waiting: int = 9, seconds: float = 60) -> Any:
    """What `act`, a coroutine function of the jobs, returns."""

    async def main() -> Any:
        jobs = Jobs(at_once, waiting, seconds)
        try:
            return await act(jobs)
        finally:
            jobs.close()

    return asyncio.run(main())


async def never() -> None:
    await asyncio.Event().wait()


async def read_all(jobs: Jobs, work: Callable[[Job], None]) -> bytes:
    job = jobs.start(work)
    first = await jobs.first_piece(job, never)
    assert first is not None
    return b"".join([piece async for piece in job.pieces(first)])


class EndlessWork:
    """Work that ends only if its client goes, the time is over or the service stops; says when it began and ended."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> None:
        self.begun.set()
        try:
            while True:
                job.check()
                time.sleep(0.01)
        finally:
            self.ended.set()


def test_all_pieces_come_in_order():
    def work(job: Job) -> None:
        for k in range(3 * PIECES):
            job.send(b"%d " % k)
            job.send(b"")  # is not the end

    async def act(jobs: Jobs) -> list[bytes]:
        return list(await asyncio.gather(*(read_all(jobs, work) for _ in range(5))))

    assert run(act, at_once=2) == [b"".join(b"%d " % k for k in range(3 * PIECES))] * 5


def test_an_error_before_the_first_piece_and_one_after_it_are_raised():
    def fail(job: Job) -> None:
        raise ValueError("first")

    def fail_later(job: Job) -> None:
        job.send(b"x")
        raise ValueError("later")

    class Panic(BaseException):
        """As a library in Rust raises it."""

    def panic(job: Job) -> None:
        raise Panic("gone")

    async def act(jobs: Jobs) -> None:
        for work, words in ((fail, "first"), (fail_later, "later")):
            with pytest.raises(ValueError, match=words):
                await read_all(jobs, work)
        with pytest.raises(RuntimeError, match="Panic: gone"):
            await read_all(jobs, panic)
        assert await read_all(jobs, lambda job: job.send(b"on")) == b"on"  # the thread goes on

    run(act)


def test_work_whose_client_goes_ends_and_work_that_waits_is_not_begun():
    work, forgotten = EndlessWork(), list[str]()

    async def act(jobs: Jobs) -> None:
        first = jobs.start(work, lambda: forgotten.append("first"))
        second = jobs.start(lambda job: forgotten.append("begun"), lambda: forgotten.append("second"))
        await asyncio.to_thread(work.begun.wait)

        async def leave() -> None:
            await asyncio.sleep(0.01)

        assert await jobs.first_piece(second, leave) is None
        assert forgotten == ["second"]
        assert await jobs.first_piece(first, leave) is None
        assert await asyncio.to_thread(work.ended.wait, 60)
        assert await read_all(jobs, lambda job: job.send(b"on")) == b"on"
        assert forgotten == ["second", "first"]

    run(act)


def test_work_ends_if_the_task_that_waits_for_it_is_cancelled():
    work = EndlessWork()

    async def act(jobs: Jobs) -> None:
        waiting = asyncio.ensure_future(jobs.first_piece(jobs.start(work), never))
        await asyncio.to_thread(work.begun.wait)
        waiting.cancel()
        assert await asyncio.to_thread(work.ended.wait, 60)

    run(act)


def test_a_client_that_takes_nothing_keeps_no_thread_beyond_the_time():
    def work(job: Job) -> None:
        while True:
            job.send(b"x")

    async def act(jobs: Jobs) -> None:
        job = jobs.start(work)
        assert await jobs.first_piece(job, never) == b"x"  # and no more
        assert await read_all(jobs, lambda job: job.send(b"on")) == b"on"
        with pytest.raises(TooLate):
            while True:
                await job.next_piece()

    run(act, seconds=0.5)


def test_more_than_may_wait_are_refused_until_one_ends():
    free = threading.Event()

    async def act(jobs: Jobs) -> None:
        waiting = [jobs.start(lambda job: (free.wait(), job.send(b"on"))[1]) for _ in range(3)]
        with pytest.raises(Busy):
            jobs.start(lambda job: None)
        free.set()
        assert [await jobs.first_piece(job, never) for job in waiting] == [b"on"] * 3
        assert await read_all(jobs, lambda job: job.send(b"on")) == b"on"

    run(act, at_once=1, waiting=2)


def test_a_service_that_ends_says_so_to_who_waits():
    begun = threading.Event()

    def work(job: Job) -> None:
        begun.set()
        while True:
            job.check()
            time.sleep(0.01)

    async def act(jobs: Jobs) -> None:
        job = jobs.start(work)
        await asyncio.to_thread(begun.wait)
        jobs.close()
        with pytest.raises(Closing):
            await jobs.first_piece(job, never)

    run(act)
