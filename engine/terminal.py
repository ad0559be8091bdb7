"""Output on a terminal: names made safe to print, errors as sentences, progress as bars."""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from atlasvi.loaders.errors import AtlasviError, AtlasviWarning
from atlasvi.loaders.outputs import FULL

INTERRUPTED = 130  # exit status after SIGINT, as in shells


def make_printable(text: str) -> str:
    """`text`, with every character that is not printable escaped as in Python's `repr`.

    Names come from other people's files: an escape character in one could move the cursor, hide text or set the
    terminal's title, and a line break could imitate a line of our output.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def count(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun: '1 cell', '2,000 cells'. many: the plural, if it is not made with an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def say(sentence: str, *, error: bool = False) -> None:
    """Print one line to standard output, or to standard error; without markup and without line wrapping."""
    typer.echo(make_printable(sentence), err=error)


@contextmanager
def explain_errors() -> Iterator[None]:
    """Turn a user's error into one sentence on standard error and exit status 1, without a traceback.

    Our own warnings (`AtlasviWarning`) are printed as sentences too; those of libraries are hidden.
    The same goes for errors of the system (a file that can't be opened, a full disk, not enough memory). If the reader
    of standard output has gone (`| head`), the program ends silently, with the same status.
    """
    warnings.filterwarnings("ignore")  # libraries warn programmers
    warnings.filterwarnings("default", category=AtlasviWarning)  # each once
    warnings.showwarning = lambda message, *where: say(f"atlasvi: {message}", error=True)
    try:
        try:
            yield
        except SystemExit:
            flush_output()
            raise
        flush_output()
    except AtlasviError as error:
        end(str(error), error.exit_status)
    except KeyboardInterrupt:
        end("interrupted", INTERRUPTED)
    except OSError as error:
        end(explain_system_error(error))
    except (MemoryError, RuntimeError) as error:
        of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        if not (of_torch or isinstance(error, MemoryError)):
            raise
        end("there is not enough memory for this: use fewer cells or genes at a time, or a smaller model.")


def end(sentence: str | None, status: int = 1) -> NoReturn:
    """End the program with a sentence on standard error."""
    if sentence is not None:
        say(f"atlasvi: {sentence}", error=True)
    with suppress(OSError):
        flush_output()
    sys.exit(status)


def flush_output() -> None:
    """Flush standard output. Raises OSError if it can't be written; Python does not try again at exit then."""
    if sys.stdout is None:  # the parent process closed it
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def explain_system_error(error: OSError) -> str | None:
    """A sentence on what the operating system refused; None if the reader of a pipe has gone."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    reason = error.strerror or str(error)
    if error.errno == errno.EPIPE:
        return None
    if error.errno in FULL:
        return f"{where}the disk is full ({reason}): free space and try again."
    if error.errno == errno.EMFILE:
        return f"{where}too many files are open at once ({reason}): raise the limit with ulimit -n."
    return f"{where}the system refused to open, read or write it ({reason})."


@contextmanager
def show_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function to report progress (stage, done, total): a progress bar, on a terminal only.

    Where standard output is a terminal too, what is printed meanwhile stands above the bar; where it is a file or a
    pipe, it goes there (rich would send it to the terminal of the bar).
    """
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not on_terminal,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            bars.start()  # only now: a question that reports nothing writes to the terminal itself
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done)

    try:
        yield report
    finally:
        bars.stop()
