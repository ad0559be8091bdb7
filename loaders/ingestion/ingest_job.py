"""What an ingest is to do, as a file that every process of it reads: so it can be spread out, and gone on with."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import read_json, write_json
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.joined import JoinedSources
from atlasvi.loaders.sources.reopened_sources import open_many

SCRATCH_FORMAT = 2
JOB, GENES = "job.json", "genes.npz"


@dataclass(frozen=True)
class Job:
    """The options of `ingest`, resolved. `identities` tell whether a source has changed since.

    scratch_format  of what an ingest keeps while it runs: one that another version left is begun anew
    """

    scratch_format: int
    sources: list[dict[str, Any]]  # the fields of each DataSpec, empty_cells among them
    identities: list[list[int]]
    genes: str | None
    rounded: bool
    top_genes: int | None
    batch_key: str | None
    seed: int
    profile: str

    def save(self, scratch: Path) -> None:
        """Write it where `load_job` finds it."""
        write_json(scratch / JOB, dataclasses.asdict(self))


def load_job(scratch: Path) -> Job | None:
    """The job that is being done in a scratch folder; None if it is none, damaged, or of an older version."""
    try:
        return Job(**read_json(scratch / JOB, older=False))
    except (SourceError, TypeError):
        return None


@contextmanager
def reading_unfinished(path: Path) -> Iterator[None]:
    """Turn damage of what an earlier process has left in a scratch folder into a SourceError, which ends the job."""
    try:
        with reading(str(path)):
            yield
    except SourceError as error:
        raise SourceError(
            f"{path}: this part of the unfinished work is damaged or gone, so all of it is removed: give the same "
            f"command again, which begins anew ({error.__cause__ or error})."
        ) from error


def identify_source(path: str) -> list[int]:
    """What tells a file or folder from what was at its path before."""
    status = os.stat(path)
    return [status.st_ino, status.st_size if os.path.isfile(path) else 0, status.st_mtime_ns]


def open_sources(job: Job, scratch: Path) -> JoinedSources:
    """The sources of a job as one, over the genes that were chosen if they were."""
    opened = open_many([DataSpec(**fields) for fields in job.sources], scratch)
    try:
        joined = JoinedSources(opened, job.genes, job.rounded)  # type: ignore[arg-type]
    except BaseException:
        for source in opened:
            source.close()
        raise
    restrict_genes(joined, scratch)
    return joined


def restrict_genes(joined: JoinedSources, scratch: Path) -> None:
    """Keep only the genes that were chosen, their statistics as columns of var, once they are."""
    if (scratch / GENES).exists():
        with reading_unfinished(scratch / GENES), np.load(scratch / GENES) as arrays:
            chosen = dict(arrays)
        joined.var = joined.var.assign(**chosen)
        joined.choose_genes(chosen["highly_variable"])


_OPEN: dict[str, tuple[Job, JoinedSources]] = {}


def open_once(scratch: str) -> tuple[Job, JoinedSources]:
    """The job of a scratch folder and its sources, kept open for the next task of this process."""
    if scratch not in _OPEN:
        job = load_job(Path(scratch))
        assert job is not None
        _OPEN.clear()
        _OPEN[scratch] = job, open_sources(job, Path(scratch))
    return _OPEN[scratch]


def keep_open(job: Job, joined: JoinedSources, scratch: Path) -> None:
    """Have tasks that run in this process use these sources."""
    _OPEN[str(scratch.absolute())] = job, joined


def forget(scratch: Path) -> None:
    """The sources of this job are no longer open."""
    _OPEN.pop(str(scratch.absolute()), None)
