"""Outputs appear whole or not at all: written beside their place, flushed to disk, renamed."""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from atlasvi.loaders.errors import OutputError

UNFINISHED = ".unfinished"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that say that a disk is full, a quota used up, or a file larger than may be."""


@contextlib.contextmanager
def write_folder_aside(out: str | Path, goes_on: Callable[[Path], bool] = lambda scratch: False) -> Iterator[Path]:
    """A scratch folder `.NAME.unfinished` beside `out`; what the caller puts in its `result` becomes `out` at the end.

    On any error, an interrupt included, the scratch folder goes and nothing else was touched. What a killed process
    left is removed by the next one, unless goes_on(scratch) says that it is of the same job and can be used: then an
    interrupt, and an error that another attempt may not meet (`keeps_work`), leave it too. A lock keeps two writers of
    one output apart.
    Raises OutputError if `out` exists, is being written by another process, or can't be written (a full disk).
    """
    out = Path(out)
    remove_leftovers(out)
    check_output_free(out)
    scratch = out.parent / f".{out.name}{UNFINISHED}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock = os.open(scratch, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{out}: can't be written there ({error.strerror}).") from error
    kept = False
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{out}: another process is writing it: wait for it, or choose another place.") from None
        try:
            if not goes_on(scratch):
                for left in scratch.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            with explain_full_disk(out):
                yield scratch
                sync_tree(scratch / "result")
                check_output_free(out)  # rename would replace an empty folder made meanwhile
                os.rename(scratch / "result", out)
                sync_folder(out.parent)
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
            kept = (interrupted or getattr(error, "keeps_work", False)) and goes_on(scratch)
            raise
        finally:
            if not kept:
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(lock)


def remove_leftovers(out: str | Path) -> None:
    """Remove the scratch folder of a finished output, whose writer was killed before it did; else nothing."""
    out = Path(out)
    scratch = out.parent / f".{out.name}{UNFINISHED}"
    if not out.exists() or not scratch.is_dir() or (scratch / "result").exists():
        return
    with contextlib.suppress(OSError):  # it is being cleaned up, or is not ours to remove
        lock = os.open(scratch, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)
        finally:
            os.close(lock)


def check_output_free(out: str | Path) -> None:
    """Raises OutputError if there is something at `out` already."""
    if os.path.lexists(out):
        raise OutputError(f"{out} exists already: choose another place, or remove it first.")


@contextlib.contextmanager
def explain_full_disk(out: str | Path) -> Iterator[None]:
    """Turn an OSError that says the disk is full (or the quota used up) into an OutputError that names the output."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OutputError(
                f"{out}: the disk is full ({error.strerror}); nothing was left there: free space and try again."
            ) from error
        raise


def sync_file(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    sync_file(folder)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders below `folder` to disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            sync_file(Path(place) / name)
        sync_folder(Path(place))


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by new content in one step: written aside, flushed, renamed.

    Several processes may write the same. What a killed one leaves is removed by `remove_unfinished`.
    Raises OutputError on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with explain_full_disk(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of `write_whole` in a folder that no other process writes to."""
    for left in folder.glob(".*"):
        if left.name.endswith(UNFINISHED):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def write_file_aside(out: str | Path) -> Iterator[Path]:
    """A temporary path beside `out`; the file that the caller writes there is flushed and becomes `out` at the end.

    On any error it goes and nothing else was touched.
    Raises OutputError if `out` exists or can't be written (a full disk, no such folder).
    """
    out = Path(out)
    check_output_free(out)
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent} to write it in.")
    temporary = out.parent / f".{out.name}{UNFINISHED}-{os.getpid()}"
    for left in out.parent.glob(f"{glob.escape(f'.{out.name}{UNFINISHED}-')}*"):
        if not _is_running(left.name.rpartition("-")[2]):
            left.unlink(missing_ok=True)
    try:
        temporary.touch()  # so that a place that can't be written is found before there is anything to write
    except OSError as error:
        raise OutputError(f"{out}: can't be written there ({error.strerror}).") from error
    try:
        with explain_full_disk(out):
            yield temporary
            sync_file(temporary)
            os.rename(temporary, out)
            sync_folder(out.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    """Whether there is a process of this number; True for what is no number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        pass
    return True
