"""Local files and folders for libraries that write nothing else; in the end they are sent to a bucket, if need be."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from atlasvi.loaders.places.connections import share_threads
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.places.objects import together
from atlasvi.loaders.places.written_objects import write_object


@contextmanager
def write_local_file(place: Place) -> Iterator[Path]:
    """A path for the content of a new file: that of the place, or a temporary one, which is sent to it at the end.

    After an error nothing is sent. Temporary files are where Python has them: the environment variable TMPDIR says.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="atlasvi-") as folder:
        yield Path(folder) / place.name
        write_object(place.address, place.storage, Path(folder) / place.name)


@contextmanager
def write_local_folder(place: Place) -> Iterator[Path]:
    """As `write_local_file`, of a folder, which exists; its files are sent many at a time."""
    if isinstance(place, Path):
        place.mkdir(exist_ok=True)
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="atlasvi-") as folder:
        yield Path(folder)
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        targets = [place.address.join(path.relative_to(folder).as_posix()) for path in files]
        together(
            [partial(write_object, target, place.storage, path) for target, path in zip(targets, files)],
            share_threads(),
        )
