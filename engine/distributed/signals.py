"""Stopping on a signal: the current step is finished, a checkpoint written, and the command to resume printed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from atlasvi.loaders.errors import AtlasviError

EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h, "try again later": a scheduler can requeue on it


class TrainingInterrupted(AtlasviError):
    """A signal stopped the run, and its work is saved. The command line ends with status 75.

    agreed  whether all ranks stop at the same step
    what    what happened, without where it was saved and how to resume
    """

    exit_status, keeps_work = EXIT_RESUMABLE, True
    agreed = False
    what = "stopped"


class StopNow(BaseException):
    """SIGTERM came before there was anything to save.

    Like KeyboardInterrupt it is not an Exception: it can be raised anywhere in the program, and a library, or our own
    readers of damaged files, would take an Exception for an error of their own work.
    """

    exit_status, keeps_work = EXIT_RESUMABLE, True


class Signals:
    """The SIGINT and SIGTERM signals received so far.

    caught   names of the signals, in order
    waits    False: there is nothing to save yet, and SIGTERM ends the block at once
    """

    def __init__(self) -> None:
        self.caught: list[str] = []
        self.waits = False

    def note(self, number: int, frame: object) -> None:
        """Record a signal; a second SIGINT, or one before there is anything to save, interrupts at once."""
        if number == signal.SIGINT and (self.caught or not self.waits):
            raise KeyboardInterrupt
        self.caught.append(signal.Signals(number).name)
        if not self.waits:
            raise StopNow(f"stopped by {self.caught[0]}: run the same command again.")


@contextmanager
def stop_on_signals() -> Iterator[Signals]:
    """Handle SIGINT and SIGTERM in this block.

    Raises TrainingInterrupted if SIGTERM ended the block at once, KeyboardInterrupt if SIGINT did.
    """
    signals = Signals()
    try:
        before = {number: signal.signal(number, signals.note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: then the caller handles signals
        yield signals
        return
    try:
        yield signals
    except StopNow as stop:
        raise TrainingInterrupted(str(stop)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
