"""Jobs that several processes share and that the same call continues after a kill: the folder in which they are done.

The folder is `.NAME.unfinished` beside the output, on local disk or in a bucket (see `write_new_folder`):

    job.json   what is to be done; once it exists, other processes may begin to work
    parts      numbered; a part is done when its file exists, which is written last, whole and with a checksum (`Parts`)
    result     becomes the output at the end
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError, StorageError
from atlasvi.loaders.manifest import read_json, write_json
from atlasvi.loaders.outputs import write_new_folder
from atlasvi.loaders.places.object_path import Place, to_place

JOB = "job.json"
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Job:
    """What is to be done, as plain values; each kind of work has a subclass. An equal job may continue this one."""

    def save(self, scratch: Place) -> None:
        """Write it where `load` finds it; other processes may begin to work once it exists."""
        write_json(scratch / JOB, dataclasses.asdict(self))

    @classmethod
    def load(cls, scratch: Place) -> Self | None:
        """The job of a folder; None if the folder has none, or it is damaged or of an older version.

        Raises StorageError: whether a bucket holds a job is not known if it can't be read.
        """
        try:
            return cls(**read_json(scratch / JOB, older=False))
        except StorageError:
            raise
        except (SourceError, TypeError):
            return None


@contextmanager
def open_job_folder(out: str | Place, job: Job) -> Iterator[Place]:
    """The folder to do a job in, with what an equal job left there; its `result` becomes `out` at the end.

    Raises OutputError if `out` exists, is being written by another process, or can't be written (a full disk).
    """
    with write_new_folder(to_place(out), lambda scratch: job.load(scratch) == job) as scratch:
        yield scratch


@contextmanager
def reading_unfinished(path: Place) -> Iterator[None]:
    """Turn damage to files that an earlier process left in a job's folder into a SourceError, which ends the job."""
    try:
        with reading(str(path)):
            yield
    except StorageError:
        raise
    except SourceError as error:
        raise SourceError(
            f"{path}: this part of the unfinished work is damaged or gone, so all of it is removed: give the same "
            f"command again, which starts from the beginning ({error.__cause__ or error})."
        ) from error


@dataclass(frozen=True)
class Parts:
    """The numbered parts of one stage of a job: each finished part has a file of plain values with their checksum.

    folder  where the files are; it may hold other files too
    name    pattern of their names, such as '{:06d}.json'
    """

    folder: Place
    name: str

    def is_done(self, number: int) -> bool:
        """Whether a process has finished the part."""
        return (self.folder / self.name.format(number)).is_file()

    def list_undone(self, n_parts: int) -> list[int]:
        """Numbers of the parts that no process has finished yet."""
        there = {path.name for path in self.folder.iterdir()}
        return [number for number in range(n_parts) if self.name.format(number) not in there]

    def finish(self, number: int, values: dict[str, Any]) -> None:
        """Record that a part is done, and its values; all other files of the part must be on disk already."""
        write_json(self.folder / self.name.format(number), values)

    def read(self, number: int) -> dict[str, Any]:
        """The values that `finish` wrote. Raises SourceError if they are damaged or gone."""
        path = self.folder / self.name.format(number)
        with reading_unfinished(path):
            return read_json(path, older=False)


class KeptOpen(Generic[Opened]):
    """What a process has opened for a job and keeps for its next task; for one job at a time.

    A worker of a cluster lives longer than a job, and another job may come to the same folder: then it is opened again.
    open_job  opens it, given the folder of the job
    """

    def __init__(self, open_job: Callable[[Place], Opened]) -> None:
        self._open_job = open_job
        self._kept: dict[Place, tuple[Opened, bytes | None]] = {}  # with what job.json held; None: whatever it holds

    def get(self, scratch: str | Place) -> Opened:
        """What is open for a job; it is opened now if need be."""
        place = to_place(scratch).absolute()
        job = _read_job(place)
        kept = self._kept.get(place)
        if kept is None or kept[1] not in (None, job):
            kept = self._open_job(place), job
            self._kept.clear()
            self._kept[place] = kept
        return kept[0]

    def keep(self, scratch: Place, opened: Opened) -> None:
        """Let tasks that run in this process use what is open already."""
        self._kept.clear()
        self._kept[scratch.absolute()] = opened, None

    def forget(self, scratch: Place) -> None:
        """Drop what is kept for a job that has ended."""
        self._kept.pop(scratch.absolute(), None)


def _read_job(scratch: Place) -> bytes:
    """What the folder's job.json holds; b'' if there is none."""
    try:
        return (scratch / JOB).read_bytes()
    except OSError:
        return b""
