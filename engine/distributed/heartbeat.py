"""No rank hangs in silence: each sends a heartbeat twice a second, and rank 0 names the rank that fails or hangs.

A heartbeat contains what the rank's main thread is doing. Heartbeats go through the key-value store of the rendezvous
(torch's TCPStore), on separate threads: they are sent even while the main thread computes, waits or hangs.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atlasvi.engine.terminal import say

INTERVAL_S = 0.5  # between heartbeats of a rank
SILENCE_S = 4.0  # after a broken connection, a process without a heartbeat for this long is gone
BARRIER_S = 0.05  # between checks whether the other ranks have reached a barrier
GRACE_S = 10.0  # time for the main thread to end by itself after the run was aborted


@dataclass(frozen=True)
class Heartbeat:
    """The latest heartbeat of a rank.

    n_begun   number of activities that its main thread has begun
    what      the latest of them
    waiting   whether that one waits for other ranks
    sent      when it was sent, in seconds of the sender's clock
    received  when the latest one was received, in seconds of this process's clock
    changed   when `n_begun` last changed, in seconds of this process's clock
    """

    rank: int
    host: str
    pid: int
    n_begun: int
    what: str
    waiting: bool
    sent: float
    received: float
    changed: float

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


def find_failed_rank(
    heartbeats: Sequence[Heartbeat], now: float, timeout_s: float, silence_s: float
) -> tuple[int, str] | None:
    """The rank that holds up the others (-1: none of them) and a sentence about it; None if there is no failure.

    A rank that has sent no heartbeat for `silence_s` is gone. A rank that has been in one activity for `timeout_s`,
    without waiting for others, hangs. If all ranks have waited for each other for that long, the network has failed.
    """
    stalled = [heartbeat for heartbeat in heartbeats if now - heartbeat.changed > timeout_s]
    for heartbeat in heartbeats:
        silent_s = now - heartbeat.received
        if silent_s > silence_s or (heartbeat in stalled and silent_s > silence_s / 2):
            return heartbeat.rank, (
                f"{heartbeat} has not been heard of for {silent_s:.0f} s, last in {heartbeat.what}: it was killed, or "
                "its machine or network failed"
            )
    for heartbeat in stalled:
        if not heartbeat.waiting:
            seconds = now - heartbeat.changed
            return heartbeat.rank, f"{heartbeat} hangs: it has been in {heartbeat.what} for {seconds:.0f} s"
    if len(stalled) == len(heartbeats):
        return -1, f"all ranks have waited for each other for {timeout_s:.0f} s: the network between them has failed"
    return None


class HeartbeatMonitor:
    """Sends the heartbeats of this rank and receives those of others, from `start` to `stop`.

    store      of torch.distributed, with its own prefix for this attempt
    timeout_s  seconds after which a rank that makes no progress, or sends no heartbeat, ends the run
    """

    def __init__(self, store: Any, rank: int, world_size: int, timeout_s: float) -> None:
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self._store, self._place = store, (socket.gethostname(), os.getpid())
        self._state: tuple[int, str, bool] = (0, "starting", False)
        self._heartbeats: dict[int, Heartbeat] = {}
        self._last_exchange = time.monotonic()
        self._silence_s = timeout_s
        self._stopped, self._decided = threading.Event(), threading.Event()
        self._failure: str | None = None  # the sentence that ends the run, once a rank is found to have failed
        self.status = 1  # the exit status of the process, once the run is aborted
        self._n_barriers = 0
        self._threads = [
            threading.Thread(target=work, name=f"atlasvi-{work.__name__.strip('_')}", daemon=True)
            for work in (self._exchange, self._watch_connection)
        ]

    def start(self) -> None:
        """Start sending heartbeats. Every rank must have started before any rank waits for another."""
        self._send(self._store)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop sending and checking heartbeats, after the run has ended well."""
        self.note("leaving", waiting=True)
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def note(self, what: str, waiting: bool = False) -> None:
        """Record that the main thread begins an activity; `waiting` if only other ranks can end it."""
        self._state = (self._state[0] + 1, what, waiting)

    def wait_for_all(self) -> None:
        """Wait until every rank is here, without a time limit as long as none fails. Raises RuntimeError if one has."""
        self._n_barriers += 1
        key = f"barrier/{self._n_barriers}"
        self._store.add(key, 1)
        while self._store.add(key, 0) < self.world_size:
            if self._decided.wait(BARRIER_S):
                raise RuntimeError(self._failure)

    def report_failure(self, sentence: str, status: int) -> bool:
        """Send rank 0 why this rank ends early, and its exit status. Returns whether rank 0 has received it."""
        try:
            self._send(self._store)
            self._store.set(f"failure/{self.rank}", json.dumps([sentence, status]))
            self._store.add("failures", 1)
            until = time.monotonic() + GRACE_S
            while time.monotonic() < until:
                if self._store.check(["aborted"]):
                    return True
                time.sleep(INTERVAL_S / 5)
        except RuntimeError:
            pass  # rank 0 and its store are gone
        return False

    def abort(self, status: int) -> None:
        """End all ranks with this exit status, because rank 0 ends early."""
        try:
            self._store.set("aborted", str(status))
            time.sleep(3 * INTERVAL_S)  # the store may end with this process, so the others must read it first
        except RuntimeError:
            pass

    def await_decision(self) -> str | None:
        """A sentence on which rank failed, after a connection has broken; None if it can't be found out."""
        self._silence_s = min(SILENCE_S, self.timeout_s)
        self._decided.wait(2 * SILENCE_S)
        return self._failure

    def end_within(self, seconds: float) -> None:
        """End the process if it is still running by then: on exit, libraries may wait for ranks that are gone."""
        self._later(seconds, os._exit, 1)

    def _send(self, store: Any) -> None:
        store.set(f"heartbeat/{self.rank}", json.dumps([*self._place, *self._state, time.monotonic()]))

    def _exchange(self) -> None:
        """Repeatedly send a heartbeat, receive those of others, and decide whether the run is over."""
        try:
            store = self._store.clone()
            while not self._stopped.wait(INTERVAL_S):
                self._send(store)
                if self.rank == 0:
                    self._receive_all(store)
                elif store.check(["aborted"]):
                    self.status = int(store.get("aborted"))
                    self._end(None)
                else:
                    self._receive(store, [0])
                self._last_exchange = time.monotonic()
                if self._failure is None and (found := self._look_for_failure()) is not None:
                    self._decide(store, *found)
        except RuntimeError:
            pass  # the store is gone: `_watch_connection` notices that

    def _receive_all(self, store: Any) -> None:
        """Receive the heartbeats of all ranks, and a failure that one of them may have reported."""
        has_failed = store.add("failures", 0) > 0
        self._receive(store, range(self.world_size))  # again, for the last heartbeat of the failed rank
        if has_failed and self._failure is None:
            for rank in range(self.world_size):
                if store.check([f"failure/{rank}"]):
                    sentence, self.status = json.loads(store.get(f"failure/{rank}"))
                    last = self._heartbeats[rank]
                    self._decide(store, rank, f"{last} ended in {last.what}: {sentence}")
                    return

    def _receive(self, store: Any, ranks: Sequence[int]) -> None:
        now = time.monotonic()
        for rank, text in zip(ranks, store.multi_get([f"heartbeat/{rank}" for rank in ranks])):
            content: list[Any] = json.loads(text)
            heartbeat = Heartbeat(rank, *content, now, now)  # type: ignore[call-arg]
            if (before := self._heartbeats.get(rank)) is not None:
                received = before.received if heartbeat.sent == before.sent else now
                changed = before.changed if heartbeat.n_begun == before.n_begun else now
                heartbeat = replace(heartbeat, received=received, changed=changed)
            self._heartbeats[rank] = heartbeat

    def _look_for_failure(self) -> tuple[int, str] | None:
        """The rank that failed, judged by heartbeats; ranks above 0 only watch rank 0."""
        present = [heartbeat for heartbeat in self._heartbeats.values() if heartbeat.what != "leaving"]
        timeout = self.timeout_s if self.rank == 0 else float("inf")
        return find_failed_rank(present, time.monotonic(), timeout, self._silence_s) if present else None

    def _decide(self, store: Any, failed_rank: int, sentence: str) -> None:
        """End the run; the main thread has some time to do so in good order, unless it is the one that hangs."""
        self._failure = sentence
        self._decided.set()
        if self.rank == 0:
            store.set("aborted", str(self.status))
        self._later(3 * INTERVAL_S if failed_rank == self.rank else GRACE_S, self._end, sentence)

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        timer = threading.Timer(seconds, act, arguments)
        timer.daemon = True
        timer.start()

    def _watch_connection(self) -> None:
        """End a rank that can't reach the store any more, because the network failed or the store's machine is gone."""
        while not self._stopped.wait(INTERVAL_S):
            if time.monotonic() - self._last_exchange > self.timeout_s:
                self._end(
                    f"rank {self.rank} on {self._place[0]} has not reached the other ranks for {self.timeout_s:.0f} s: "
                    "the network or the machine of rank 0 has failed"
                )

    def _end(self, sentence: str | None) -> None:
        if self._stopped.is_set():
            return
        if sentence is not None:
            say(f"atlasvi: {sentence}. Resume from the last checkpoint.", error=True)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(self.status)
