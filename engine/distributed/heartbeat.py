"""Nothing hangs in silence: each rank says every second what it does, and rank 0 names the one that fails or stalls.

All goes through the key-value store that the processes met at (torch's TCPStore), on threads of its own, so that it is
heard while the main thread computes, waits for the others, or hangs.
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

BEAT_S = 0.5
SILENCE_S = 4.0  # without a beat after a connection broke: that process is gone
MEETING_S = 0.05  # between looks whether the others are there
GRACE_S = 10.0  # for the main thread to end by itself once it is known that the run is over


@dataclass(frozen=True)
class Beat:
    """What a rank said last.

    count    of things that its main thread has begun; what: the last of them; waiting: for other ranks
    spoken   when it said so, seconds of its own clock
    heard    when it spoke last, moved: when `count` changed last; seconds of this process's clock
    """

    rank: int
    host: str
    pid: int
    count: int
    what: str
    waiting: bool
    spoken: float
    heard: float
    moved: float

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


def find_culprit(beats: Sequence[Beat], now: float, timeout_s: float, silence_s: float) -> tuple[int, str] | None:
    """Which rank holds up the others (-1: none of them) and the sentence that says so, or None while all is well.

    One that has not spoken for `silence_s` is gone; one that does the same for `timeout_s` and is not waiting for the
    others hangs; where all have waited for so long, the network between them is at fault.
    """
    stalled = [beat for beat in beats if now - beat.moved > timeout_s]
    for beat in beats:
        silent_s = now - beat.heard
        if silent_s > silence_s or (beat in stalled and silent_s > silence_s / 2):
            return beat.rank, (
                f"{beat} has not been heard of for {silent_s:.0f} s, last in {beat.what}: it was killed, or its "
                "machine or network failed"
            )
    for beat in stalled:
        if not beat.waiting:
            return beat.rank, f"{beat} hangs: it has been in {beat.what} for {now - beat.moved:.0f} s"
    if len(stalled) == len(beats):
        return -1, f"all ranks have waited for each other for {timeout_s:.0f} s: the network between them fails"
    return None


class Watch:
    """Speaks for this rank and listens to the others, from `start` to `stop`.

    store      of torch.distributed, with a prefix of its own for this attempt
    timeout_s  after which a rank that does not move, or is not heard of, ends the run
    """

    def __init__(self, store: Any, rank: int, world_size: int, timeout_s: float) -> None:
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self._store, self._place = store, (socket.gethostname(), os.getpid())
        self._state: tuple[int, str, bool] = (0, "starting", False)
        self._beats: dict[int, Beat] = {}
        self._spoke = time.monotonic()
        self._silence_s = timeout_s
        self._stopped, self._judged = threading.Event(), threading.Event()
        self._verdict: str | None = None
        self.status = 1  # that the process is to end with, once there is a verdict
        self._meetings = 0
        self._threads = [
            threading.Thread(target=work, name=f"atlasvi-{work.__name__.strip('_')}", daemon=True)
            for work in (self._speak_and_listen, self._guard)
        ]

    def start(self) -> None:
        """Begin to speak. Every rank must have, before any waits for another."""
        self._speak(self._store)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The run is over and well: what the others say no longer matters."""
        self.note("leaving", waiting=True)
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def note(self, what: str, waiting: bool = False) -> None:
        """The main thread begins something; `waiting` if only other ranks can end it."""
        self._state = (self._state[0] + 1, what, waiting)

    def meet(self) -> None:
        """Wait until every rank is here, for as long as they move. Raises RuntimeError if one is gone."""
        self._meetings += 1
        self._store.add(f"met/{self._meetings}", 1)
        while self._store.add(f"met/{self._meetings}", 0) < self.world_size:
            if self._judged.wait(MEETING_S):
                raise RuntimeError(self._verdict)

    def report(self, sentence: str, status: int) -> bool:
        """Tell rank 0 that this rank ends early, and with what status; whether it has heard, and will say so."""
        try:
            self._speak(self._store)
            self._store.set(f"failure/{self.rank}", json.dumps([sentence, status]))
            self._store.add("failures", 1)
            until = time.monotonic() + GRACE_S
            while time.monotonic() < until:
                if self._store.check(["over"]):
                    return True
                time.sleep(BEAT_S / 5)
        except RuntimeError:
            pass  # rank 0 and its store are gone
        return False

    def call_off(self, status: int) -> None:
        """Rank 0 ends early: all ranks are to end, with that status."""
        try:
            self._store.set("over", str(status))
            time.sleep(3 * BEAT_S)  # the store may end with this process: they must have heard
        except RuntimeError:
            pass

    def await_verdict(self) -> str | None:
        """What is wrong with the group, after a connection broke; None if that can't be found out."""
        self._silence_s = min(SILENCE_S, self.timeout_s)
        self._judged.wait(2 * SILENCE_S)
        return self._verdict

    def end_within(self, seconds: float) -> None:
        """End the process if it has not ended by then: libraries may wait for ranks that are gone as they close."""
        self._later(seconds, os._exit, 1)

    def _speak(self, store: Any) -> None:
        store.set(f"beat/{self.rank}", json.dumps([*self._place, *self._state, time.monotonic()]))

    def _speak_and_listen(self) -> None:
        try:
            store = self._store.clone()
            while not self._stopped.wait(BEAT_S):
                self._speak(store)
                if self.rank == 0:
                    self._listen(store)
                elif store.check(["over"]):
                    self.status = int(store.get("over"))
                    self._end(None)
                else:
                    self._hear(store, [0])
                self._spoke = time.monotonic()
                if self._verdict is None and (found := self._judge()) is not None:
                    self._conclude(store, *found)
        except RuntimeError:
            pass  # the store is gone: the guard sees that nothing is heard any more

    def _listen(self, store: Any) -> None:
        failed = store.add("failures", 0) > 0
        self._hear(store, range(self.world_size))  # after that: what the one that failed said last
        if failed and self._verdict is None:
            for rank in range(self.world_size):
                if store.check([f"failure/{rank}"]):
                    sentence, self.status = json.loads(store.get(f"failure/{rank}"))
                    self._conclude(store, rank, f"{self._beats[rank]} ended in {self._beats[rank].what}: {sentence}")
                    return

    def _hear(self, store: Any, ranks: Sequence[int]) -> None:
        now = time.monotonic()
        for rank, said in zip(ranks, store.multi_get([f"beat/{rank}" for rank in ranks])):
            words: list[Any] = json.loads(said)
            beat = Beat(rank, *words, now, now)  # type: ignore[call-arg]
            if (before := self._beats.get(rank)) is not None:
                heard = before.heard if beat.spoken == before.spoken else now
                beat = replace(beat, heard=heard, moved=before.moved if beat.count == before.count else now)
            self._beats[rank] = beat

    def _judge(self) -> tuple[int, str] | None:
        """What is wrong, judged by what was heard; ranks above 0 only judge rank 0."""
        present = [beat for beat in self._beats.values() if beat.what != "leaving"]
        timeout = self.timeout_s if self.rank == 0 else float("inf")
        return find_culprit(present, time.monotonic(), timeout, self._silence_s) if present else None

    def _conclude(self, store: Any, culprit: int, verdict: str) -> None:
        """The run is over; the main thread has a while to end it in good order, unless it is what hangs."""
        self._verdict = verdict
        self._judged.set()
        if self.rank == 0:
            store.set("over", str(self.status))
        self._later(3 * BEAT_S if culprit == self.rank else GRACE_S, self._end, verdict)

    def _later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        timer = threading.Timer(seconds, act, arguments)
        timer.daemon = True
        timer.start()

    def _guard(self) -> None:
        """A rank that can't reach the store any more, because the network failed or its machine is gone."""
        while not self._stopped.wait(BEAT_S):
            if time.monotonic() - self._spoke > self.timeout_s:
                self._end(
                    f"rank {self.rank} on {self._place[0]} has not reached the other ranks for {self.timeout_s:.0f} s: "
                    "the network or the machine of rank 0 fails"
                )

    def _end(self, sentence: str | None) -> None:
        if self._stopped.is_set():
            return
        if sentence is not None:
            say(f"atlasvi: {sentence}. Go on from what was saved last.", error=True)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(self.status)
