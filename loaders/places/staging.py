"""Local files and folders for libraries that write nothing else; in the end they are sent to a bucket, if need be."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.places.connections import share_threads
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.objects import together
from atlasvi.loaders.places.written_objects import write_object

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""errno of a full disk, an exhausted quota, and a file larger than allowed."""


@contextmanager
def _make_folder(place: ObjectPath) -> Iterator[Path]:
    """A temporary folder. Raises OutputError, naming the place that the content is for, if its disk is full."""
    try:
        with tempfile.TemporaryDirectory(prefix="atlasvi-") as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OutputError(
            f"{place}: the folder for temporary files, {tempfile.gettempdir()}, is full: free space there, or set "
            "TMPDIR to another folder, then give the same command again."
        ) from error


@contextmanager
def write_local_file(place: Place) -> Iterator[Path]:
    """A path for the content of a new file: that of the place, or a temporary one, which is sent to it at the end.

    After an error nothing is sent. Temporary files are where Python has them: the environment variable TMPDIR says.
    """
    if isinstance(place, Path):
        yield place
        return
    with _make_folder(place) as folder:
        yield folder / place.name
        write_object(place.address, place.storage, folder / place.name)


@contextmanager
def write_local_folder(place: Place) -> Iterator[Path]:
    """As `write_local_file`, of a folder, which exists; its files are sent many at a time."""
    if isinstance(place, Path):
        place.mkdir(exist_ok=True)
        yield place
        return
    with _make_folder(place) as folder:
        yield folder
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        targets = [place.address.join(path.relative_to(folder).as_posix()) for path in files]
        together(
            [partial(write_object, target, place.storage, path) for target, path in zip(targets, files)],
            share_threads(),
        )
