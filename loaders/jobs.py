"""Work that processes share, and that the same call goes on with after a kill: the folder in which it is done.

The folder is `.NAME.unfinished` beside the output (see `write_folder_aside`):

    job.json   what is to be done, written when whoever sees it may begin
    parts      numbered; a part is done when a file says so that is written last, whole, and with a checksum (`Parts`)
    result     becomes the output
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import read_json, write_json
from atlasvi.loaders.outputs import write_folder_aside

JOB = "job.json"
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Job:
    """What is to be done, as plain values; a kind of work derives from it. Equal jobs may go on with each other's."""

    def save(self, scratch: Path) -> None:
        """Write it where `load` finds it; whoever sees it may begin to work."""
        write_json(scratch / JOB, dataclasses.asdict(self))

    @classmethod
    def load(cls, scratch: Path) -> Self | None:
        """The job that is being done in a folder; None if it is none, damaged, or of an older version."""
        try:
            return cls(**read_json(scratch / JOB, older=False))
        except (SourceError, TypeError):
            return None


@contextmanager
def open_job_folder(out: str | Path, job: Job) -> Iterator[Path]:
    """The folder to do a job in, with what an equal job left there; its `result` becomes `out` at the end.

    Raises OutputError if `out` exists, is being written by another process, or can't be written (a full disk).
    """
    with write_folder_aside(out, lambda scratch: job.load(scratch) == job) as scratch:
        yield scratch


@contextmanager
def reading_unfinished(path: Path) -> Iterator[None]:
    """Turn damage of what an earlier process has left in a job's folder into a SourceError, which ends the job."""
    try:
        with reading(str(path)):
            yield
    except SourceError as error:
        raise SourceError(
            f"{path}: this part of the unfinished work is damaged or gone, so all of it is removed: give the same "
            f"command again, which begins anew ({error.__cause__ or error})."
        ) from error


@dataclass(frozen=True)
class Parts:
    """The numbered parts of one stage of a job: for each that is done a file of plain values with their checksum.

    folder  of the files, which may hold others too; name: of each, as '{:06d}.json'
    """

    folder: Path
    name: str

    def is_done(self, number: int) -> bool:
        """Whether a process has finished the part."""
        return (self.folder / self.name.format(number)).exists()

    def list_undone(self, n_parts: int) -> list[int]:
        """Numbers of the parts that no process has finished yet."""
        there = {path.name for path in self.folder.iterdir()}
        return [number for number in range(n_parts) if self.name.format(number) not in there]

    def finish(self, number: int, values: dict[str, Any]) -> None:
        """Say that a part is done, all files of which are on disk, and what it holds."""
        write_json(self.folder / self.name.format(number), values)

    def read(self, number: int) -> dict[str, Any]:
        """What `finish` wrote. Raises SourceError if it is damaged or gone."""
        path = self.folder / self.name.format(number)
        with reading_unfinished(path):
            return read_json(path, older=False)


class KeptOpen(Generic[Opened]):
    """What a process has opened to work on a job, kept for its next task; of one job at a time.

    open_job  called with the folder of the job
    """

    def __init__(self, open_job: Callable[[Path], Opened]) -> None:
        self._open_job = open_job
        self._kept: dict[Path, Opened] = {}

    def get(self, scratch: str | Path) -> Opened:
        """What is open for a job, opened now if it is not yet."""
        place = Path(scratch).absolute()
        if place not in self._kept:
            self.keep(place, self._open_job(place))
        return self._kept[place]

    def keep(self, scratch: Path, opened: Opened) -> None:
        """Have tasks that run in this process use this."""
        self._kept.clear()
        self._kept[scratch.absolute()] = opened

    def forget(self, scratch: Path) -> None:
        """The job is done with, in this process."""
        self._kept.pop(scratch.absolute(), None)
