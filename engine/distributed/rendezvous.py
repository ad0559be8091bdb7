"""Connect the processes of one attempt through a store that may still hold entries of an earlier attempt."""

import time
import uuid
from typing import Any

LOOK_S = 0.02


def meet(store: Any, rank: int, world_size: int, timeout_s: float) -> str:
    """A name used only by this attempt, the same on all ranks, once all ranks have started.

    torchrun keeps its store when it restarts the processes, and its counters of attempts can differ between machines.
    So each rank writes a random word, rank 0 answers it with the name, and waits until the rank has read it.
    Raises TimeoutError with the ranks that are missing, RuntimeError if the store is gone.
    """
    word, until = uuid.uuid4().hex, time.monotonic() + timeout_s
    if rank > 0:
        store.set(f"hello/{rank}", word)
        while not (answer := _read(store, f"welcome/{rank}")).startswith(word):
            _wait(until, "rank 0")
        name = answer.removeprefix(word)
        store.set(f"here/{rank}", name)
        return name
    missing = list(range(1, world_size))
    while missing:
        for other in missing:
            if greeting := _read(store, f"hello/{other}"):
                store.set(f"welcome/{other}", greeting + word)
        missing = [other for other in missing if _read(store, f"here/{other}") != word]
        if missing:
            _wait(until, f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:8]))}")
    return word


def _read(store: Any, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(until: float, who: str) -> None:
    if time.monotonic() > until:
        raise TimeoutError(f"{who} did not start in time")
    time.sleep(LOOK_S)
