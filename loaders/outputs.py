"""Outputs appear whole or not at all: written beside their place, flushed to disk, renamed.

All of them go through `publish`: `write_whole` (a file that may be replaced), `write_file_aside` and
`write_folder_aside` (a new output), `write_files_aside` (some files of a folder).
"""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from atlasvi.loaders.errors import OutputError

UNFINISHED = ".unfinished"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors that say that a disk is full, a quota used up, or a file larger than may be."""


def publish(made: Path, out: Path, replace: bool = False) -> None:
    """Flush a file or a folder to disk and rename it to `out` on the same file system, so that it is there whole.

    replace  whether it may take the place of a file that is there. Raises OutputError if it may not and one is.
    """
    sync_tree(made)
    if not replace:
        check_output_free(out)  # a rename would replace a file, or an empty folder
    os.rename(made, out)
    sync_file(out.parent)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by new content in one step.

    Several processes may write the same. What a killed one leaves is removed by `remove_unfinished`.
    Raises OutputError on a full disk.
    """
    with _beside(path) as temporary, explain_full_disk(path):
        temporary.write_bytes(content)
        publish(temporary, path, replace=True)


@contextlib.contextmanager
def write_file_aside(out: str | Path) -> Iterator[Path]:
    """A temporary path beside `out`; the file that the caller writes there becomes `out`, a new file, at the end.

    On any error it goes and nothing else was touched.
    Raises OutputError if `out` exists or can't be written (a full disk, no such folder).
    """
    out = Path(out)
    check_output_free(out)
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent} to write it in.")
    _remove_left_behind(out)
    with _beside(out) as temporary:
        try:
            temporary.touch()  # so that a place that can't be written is found before there is anything to write
        except OSError as error:
            raise OutputError(f"{out}: can't be written there ({error.strerror}).") from error
        with explain_full_disk(out):
            yield temporary
            publish(temporary, out)


@contextlib.contextmanager
def write_files_aside(folder: Path, order: Sequence[str]) -> Iterator[Path]:
    """A temporary folder in `folder`; the files that the caller writes there replace those of their names at the end.

    order  the names, first to last: of a process that is killed meanwhile the first so many are replaced
    On any error in the block nothing was touched. Raises OutputError if `folder` can't be written (a full disk).
    """
    aside = folder / order[0]
    _remove_left_behind(aside)
    with _beside(aside) as temporary, explain_full_disk(folder):
        try:
            temporary.mkdir()
        except OSError as error:
            raise OutputError(f"{folder}: can't be written there ({error.strerror}).") from error
        yield temporary
        sync_tree(temporary)
        for name in order:
            if (temporary / name).exists():
                publish(temporary / name, folder / name, replace=True)


@contextlib.contextmanager
def write_folder_aside(out: str | Path, goes_on: Callable[[Path], bool] = lambda scratch: False) -> Iterator[Path]:
    """A scratch folder `.NAME.unfinished` beside `out`; what the caller puts in its `result` becomes `out` at the end.

    On any error, an interrupt included, the scratch folder goes, with the folders that were made for it, and nothing
    else was touched. What a killed process left is removed by the next one, unless goes_on(scratch) says that it is of
    the same job and can be used: then an interrupt, and an error that another attempt may not meet (`keeps_work`),
    leave it too. A lock keeps two writers of one output apart.
    Raises OutputError if `out` exists, is being written by another process, or can't be written (a full disk).
    """
    out = Path(out)
    remove_leftovers(out)
    check_output_free(out)
    scratch = name_scratch(out)
    with making_parents(out):
        try:
            scratch.mkdir(exist_ok=True)
            lock = os.open(scratch, os.O_RDONLY)
        except OSError as error:
            raise OutputError(f"{out}: can't be written there ({error.strerror}).") from error
        kept = False
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                kept = True
                raise OutputError(
                    f"{out}: another process is writing it: wait for it, or choose another place."
                ) from None
            if not goes_on(scratch):
                for left in scratch.iterdir():
                    _remove(left)
            with explain_full_disk(out):
                yield scratch
                publish(scratch / "result", out)
        except BaseException as error:
            again = isinstance(error, (KeyboardInterrupt, SystemExit)) or getattr(error, "keeps_work", False)
            kept = kept or (again and goes_on(scratch))
            raise
        finally:
            if not kept:
                _remove(scratch)
            os.close(lock)


def name_scratch(out: str | Path) -> Path:
    """The scratch folder of `write_folder_aside`."""
    out = Path(out)
    return out.parent / f".{out.name}{UNFINISHED}"


def remove_leftovers(out: str | Path) -> None:
    """Remove the scratch folder of a finished output, whose writer was killed before it did; else nothing."""
    scratch = name_scratch(out)
    if not os.path.exists(out) or not os.path.isdir(scratch) or os.path.exists(scratch / "result"):
        return
    with contextlib.suppress(OSError):  # it is being cleaned up, or is not ours to remove
        lock = os.open(scratch, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(scratch)
        finally:
            os.close(lock)


def remove_unfinished(folder: Path) -> None:
    """Remove the files that killed processes left of `write_whole` in a folder.

    Those of a process that runs stay, and so do folders: they are the work of a command that goes on with it.
    """
    for left in folder.glob(".*"):
        _, mark, process = left.name.rpartition(UNFINISHED)  # the first versions wrote the process before the mark
        if mark and not left.is_dir() and not (process and _is_running(process.removeprefix("-"))):
            left.unlink(missing_ok=True)


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


def sync_tree(made: Path) -> None:
    """Flush a file, or a folder with all files and folders below it, to disk."""
    if not made.is_dir():
        sync_file(made)
    for place, _, files in os.walk(made):
        for name in files:
            sync_file(Path(place) / name)
        sync_file(Path(place))


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A path beside `out` that is free and of this process alone; what is there at the end is removed."""
    temporary = out.parent / f".{out.name}{UNFINISHED}-{os.getpid()}"
    _remove(temporary)  # of an earlier process of this number
    try:
        yield temporary
    finally:
        _remove(temporary)


@contextlib.contextmanager
def making_parents(out: Path) -> Iterator[None]:
    """The folders that lead to `out` are made; where the block fails, those made here that are empty are removed."""
    made: list[Path] = []
    try:
        for parent in reversed(out.parents):
            if not parent.exists():
                parent.mkdir(exist_ok=True)
                made.append(parent)
    except OSError as error:
        _remove_empty(made)
        raise OutputError(f"{out}: can't be written there ({error.strerror}).") from error
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):  # something is in it by now
        for folder in reversed(folders):
            folder.rmdir()


def _remove(path: Path) -> None:
    """Remove a file or a folder, where there is one and it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_left_behind(out: Path) -> None:
    """Remove what processes that have ended left beside `out`."""
    for left in out.parent.glob(f"{glob.escape(f'.{out.name}{UNFINISHED}-')}*"):
        if not _is_running(left.name.rpartition("-")[2]):
            _remove(left)


def _is_running(process: str) -> bool:
    """Whether there is a process of this number; True for what is no number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        pass
    return True
