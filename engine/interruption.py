"""Stopping when asked to: the current step is finished, a checkpoint written, the way to go on said."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from atlasvi.loaders.errors import AtlasviError


class TrainingInterrupted(AtlasviError):
    """A signal asked to stop; a checkpoint was written."""


@contextmanager
def stop_on_signals() -> Iterator[list[str]]:
    """A list that fills with the names of SIGINT and SIGTERM as they come; the second SIGINT interrupts at once."""
    caught: list[str] = []

    def note(number: int, frame: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's matter
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
