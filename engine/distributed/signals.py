"""Stopping when asked to: the current step is finished, a checkpoint written, the way to go on said."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from atlasvi.loaders.errors import AtlasviError

EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h, "try again later": a scheduler can requeue on it


class TrainingInterrupted(AtlasviError):
    """A signal asked to stop; what was done is saved. The command line ends with status 75.

    agreed  whether all ranks stop, at the same step
    what    what happened, without where it was saved and how to go on
    """

    exit_status, keeps_work = EXIT_RESUMABLE, True
    agreed = False
    what = "stopped"


class StopNow(BaseException):
    """SIGTERM came while there was nothing to save yet.

    Not an Exception, as KeyboardInterrupt is none: it is raised wherever the program happens to be, and a library that
    is interrupted, or our own readers of damaged files, would take an Exception for a fault of what they do.
    """

    exit_status, keeps_work = EXIT_RESUMABLE, True


class Signals:
    """What SIGINT and SIGTERM have asked for.

    caught   names of the signals, as they came
    waits    False: there is nothing to save yet, and SIGTERM ends the block at once
    """

    def __init__(self) -> None:
        self.caught: list[str] = []
        self.waits = False

    def note(self, number: int, frame: object) -> None:
        """Take a signal; the second SIGINT, or one before there is anything to save, interrupts at once."""
        if number == signal.SIGINT and (self.caught or not self.waits):
            raise KeyboardInterrupt
        self.caught.append(signal.Signals(number).name)
        if not self.waits:
            raise StopNow(f"stopped by {self.caught[0]}: give the same command again.")


@contextmanager
def stop_on_signals() -> Iterator[Signals]:
    """Take SIGINT and SIGTERM, for the block.

    Raises TrainingInterrupted where SIGTERM ended the block at once, KeyboardInterrupt where SIGINT did.
    """
    signals = Signals()
    try:
        before = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's matter
        yield signals
        return
    try:
        yield signals
    except StopNow as stop:
        raise TrainingInterrupted(str(stop)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
