"""Outputs appear whole or not at all: they are written beside their final place, flushed to disk, then renamed.

All of them go through `publish`: `write_whole` (a file that may be replaced), `write_file_aside` and
`write_folder_aside` (a new output), `write_files_aside` (some files of a folder). In a bucket an object is always
written whole; `write_new_folder` makes a new output there too (see places/written_folders.py).
"""

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, overload

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.places.object_path import ObjectPath, Place, to_place
from atlasvi.loaders.places.staging import FULL as FULL
from atlasvi.loaders.places.written_folders import (
    check_free_in_bucket,
    remove_published,
    write_folder_in_bucket,
)

UNFINISHED = ".unfinished"


def publish(made: Path, out: Path, replace: bool = False) -> None:
    """Flush a file or folder to disk and rename it to `out` on the same file system, so that it appears whole.

    replace  whether it may replace a file at `out`
    Raises OutputError if there is a folder at `out`, or a file that may not be replaced.
    """
    sync_tree(made)
    if replace:
        _check_no_folder(out)
    else:
        check_output_free(out)  # a rename would replace a file, or an empty folder
    os.rename(made, out)
    sync_file(out.parent)


def write_whole(path: Place, content: bytes | memoryview) -> None:
    """Replace a file by new content in one step.

    Several processes may write the same file. What a killed one leaves is removed by `remove_unfinished`.
    Raises OutputError on a full disk, StorageError if a bucket does not take it.
    """
    if isinstance(path, ObjectPath):
        path.write_bytes(content)
        return
    with _beside(path) as temporary, explain_full_disk(path):
        temporary.write_bytes(content)
        publish(temporary, path, replace=True)


@contextlib.contextmanager
def write_file_aside(out: str | Path) -> Iterator[Path]:
    """A temporary path beside `out`; the file that the caller writes there becomes `out`, a new file, at the end.

    On any error the temporary file is removed and nothing else is touched.
    Raises OutputError if `out` exists or can't be written (a full disk, no such folder).
    """
    out = need_local_output(out)
    check_output_free(out)
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}: make it first, or choose another place.")
    _remove_left_behind(out)
    with _beside(out) as temporary:
        try:
            temporary.touch()  # fail before the work is done, not after
        except OSError as error:
            raise OutputError(f"{out}: can't be written there ({error.strerror}).") from error
        with explain_full_disk(out):
            yield temporary
            publish(temporary, out)


@contextlib.contextmanager
def write_files_aside(folder: Path, order: Sequence[str]) -> Iterator[Path]:
    """A temporary folder in `folder`; the files that the caller writes there replace those of their names at the end.

    order  the names, in the order in which they are replaced; a kill during this leaves the later ones as they were
    On any error in the block nothing is touched. Raises OutputError if `folder` can't be written (a full disk, a folder
    where a file must be).
    """
    for name in order:
        _check_no_folder(folder / name)
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
def write_folder_aside(out: str | Path, is_same_job: Callable[[Path], bool] = lambda scratch: False) -> Iterator[Path]:
    """A scratch folder `.NAME.unfinished` beside `out`; what the caller puts in its `result` becomes `out` at the end.

    On any error, an interrupt included, the scratch folder is removed, with the parent folders that were made for it,
    and nothing else is touched. What a killed process left is removed by the next one, unless is_same_job(scratch) is
    true, so that the work can be continued: then an interrupt, and an error that may not occur again (`keeps_work`),
    leave it too. A lock keeps two processes from writing one output.
    Raises OutputError if `out` exists, is being written by another process, or can't be written (a full disk).
    """
    out = need_local_output(out)
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
            if not is_same_job(scratch):
                for left in scratch.iterdir():
                    _remove(left)
            with explain_full_disk(out):
                yield scratch
                publish(scratch / "result", out)
        except BaseException as error:
            again = isinstance(error, (KeyboardInterrupt, SystemExit)) or getattr(error, "keeps_work", False)
            kept = kept or (again and is_same_job(scratch))
            raise
        finally:
            if not kept:
                _remove(scratch)
            os.close(lock)


def write_new_folder(
    out: Place, is_same_job: Callable[[Any], bool] = lambda scratch: False
) -> AbstractContextManager[Place]:
    """As `write_folder_aside`, for a place that may be in a bucket, where the scratch folder is too."""
    if isinstance(out, ObjectPath):
        return write_folder_in_bucket(out, name_scratch(out), is_same_job)
    return write_folder_aside(out, is_same_job)


def need_local_output(out: str | Path) -> Path:
    """The path of an output that is written on local disk alone. Raises OutputError for an address."""
    if not isinstance(place := to_place(out), Path):
        raise OutputError(f"{place}: this is written on local disk alone: give a path, then copy it into the bucket.")
    return place


@contextlib.contextmanager
def lock_folder(folder: Path, busy: str) -> Iterator[None]:
    """Lock a folder against other processes; the lock ends with the block, or with the process.

    busy  what another process does that has locked it, and what to do then: the end of the message
    Raises OutputError if another process has locked it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{folder}: another process is {busy}") from None
        yield
    finally:
        os.close(handle)


@overload
def name_scratch(out: str | Path) -> Path: ...
@overload
def name_scratch(out: ObjectPath) -> ObjectPath: ...
def name_scratch(out: str | Place) -> Place:
    """The scratch folder of `write_folder_aside` and `write_new_folder`."""
    out = Path(out) if isinstance(out, str) else out
    return out.parent / f".{out.name}{UNFINISHED}"


def remove_leftovers(out: str | Place, in_bucket: bool = False) -> None:
    """Remove the scratch folder of a finished output, if its process ended before it could.

    in_bucket  also in a bucket: for who writes there, since it takes requests and the permission to remove
    """
    if isinstance(out, ObjectPath):
        if in_bucket:
            remove_published(out, name_scratch(out))
        return
    scratch = name_scratch(out)
    if not os.path.exists(out) or not os.path.isdir(scratch) or os.path.exists(scratch / "result"):
        return
    with contextlib.suppress(OSError):  # another process is removing it, or we may not
        lock = os.open(scratch, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(scratch)
        finally:
            os.close(lock)


def remove_unfinished(folder: Place) -> None:
    """Remove the files that killed processes left when they called `write_whole` in a folder; none in a bucket.

    Files of running processes stay, and so do folders: the same command can continue the work in them.
    """
    if isinstance(folder, ObjectPath):
        return
    for left in folder.glob(".*"):
        _, mark, process = left.name.rpartition(UNFINISHED)  # the first versions wrote the process id before the mark
        if mark and not left.is_dir() and not (process and _is_running(process.removeprefix("-"))):
            left.unlink(missing_ok=True)


def check_output_free(out: str | Place) -> None:
    """Raises OutputError if there is something at `out` already."""
    if isinstance(out, ObjectPath):
        check_free_in_bucket(out, name_scratch(out))
    elif os.path.lexists(out):
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


def _check_no_folder(out: Path) -> None:
    if out.is_dir():
        raise OutputError(f"{out} is a folder, and a file must be written there: move it away, or remove it.")


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
    """A free path beside `out` that no other process uses; whatever is there at the end is removed."""
    temporary = out.parent / f".{out.name}{UNFINISHED}-{os.getpid()}"
    _remove(temporary)  # left by an earlier process with the same id
    try:
        yield temporary
    finally:
        _remove(temporary)


@contextlib.contextmanager
def making_parents(out: Path) -> Iterator[None]:
    """Make the parent folders of `out`; if the block fails, remove those that were made here and are empty."""
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
    with contextlib.suppress(OSError):  # it is not empty any more
        for folder in reversed(folders):
            folder.rmdir()


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it exists and can be removed."""
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
    """Whether a process with this id is running; True for text that is not a number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        pass
    return True
