"""The job of an ingest, which every process of it reads, and the sources that each process opens for it."""

import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.loaders.jobs import Job, KeptOpen, reading_unfinished
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.joined import JoinedSources
from atlasvi.loaders.sources.reopened_sources import open_many

SCRATCH_FORMAT = 3
GENES = "genes.npz"


@dataclass(frozen=True)
class IngestJob(Job):
    """The options of `ingest`, resolved. `identities` show whether a source has changed since.

    scratch_format  format of the scratch folder: work that another version left is not continued
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


def identify_source(place: Place) -> list[int]:
    """Values that differ if the file or folder at a place is another one, or was changed; none if it does not exist."""
    if isinstance(place, ObjectPath):
        versions = place.list_versions()
        return [len(versions), zlib.crc32(repr(sorted(versions.items())).encode())]
    if not place.exists():
        return []
    status = os.stat(place)
    return [status.st_ino, status.st_size if place.is_file() else 0, status.st_mtime_ns]


def open_sources(job: IngestJob, scratch: Place) -> JoinedSources:
    """The sources of a job as one, with the chosen genes once they are chosen."""
    spool = scratch if isinstance(scratch, Path) else None  # else they sort by row where Python has temporary files
    opened = open_many([DataSpec(**fields) for fields in job.sources], spool)
    try:
        joined = JoinedSources(opened, job.genes, job.rounded)  # type: ignore[arg-type]
    except BaseException:
        for source in opened:
            source.close()
        raise
    restrict_genes(joined, scratch)
    return joined


def restrict_genes(joined: JoinedSources, scratch: Place) -> None:
    """Keep only the chosen genes, with their statistics as columns of var, once they are chosen."""
    if (scratch / GENES).is_file():
        with reading_unfinished(scratch / GENES):
            chosen = read_npz(scratch / GENES)
        joined.var = joined.var.assign(**chosen)
        joined.choose_genes(chosen["highly_variable"])


def read_npz(path: Place) -> dict[str, np.ndarray]:
    """The arrays of a small file that np.savez wrote."""
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        return dict(arrays)


def _open(scratch: Place) -> tuple[IngestJob, JoinedSources]:
    job = IngestJob.load(scratch)
    assert job is not None
    return job, open_sources(job, scratch)


open_ingests = KeptOpen(_open)
"""The job of a scratch folder and its sources, kept open in this process."""
