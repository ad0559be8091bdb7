"""What an ingest would take: some runs of the sources' cells are ingested into a folder for temporary files."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.loaders.ingestion import bucket_sorting as sorting
from atlasvi.loaders.ingestion.ingest import describe_sources, plan_buckets, plan_job, read_batches, shuffle
from atlasvi.loaders.ingestion.ingest_job import IngestJob, open_ingests, open_sources
from atlasvi.loaders.manifest import write_json
from atlasvi.loaders.outputs import check_output_free
from atlasvi.loaders.sources.joined import JoinedSources
from atlasvi.loaders.work_estimate import WorkEstimate, check_room, peak_memory_bytes, time_parts
from atlasvi.loaders.workers import Workers, count_processes

TRIAL_NNZ = 2**21  # counts of a run: some tenths of a second
FULL_BYTES = 300_000_000  # what a process holds beyond its imports once a unit or bucket is full: see `ingest`
SCRATCH_BYTES = 5  # for a count: see `ingest`


def estimate_ingest(
    sources: Any, out: str | Path, *, workers: int | None = None, dask: str | None = None, **options: Any
) -> WorkEstimate:
    """What `ingest` with these arguments would write, and take; nothing is written but temporary files.

    Genes are not chosen: with `top_genes` the size is that of all genes. Raises what `ingest` raises for these
    arguments, as far as the sources' heads and the cells that are tried show it; OutputError if the disk is too small.
    """
    check_output_free(out)
    job = plan_job(sources, dask is not None, **options)
    with tempfile.TemporaryDirectory(prefix="atlasvi-dry-run-") as folder:
        joined = open_sources(job, Path(folder))
        try:
            if job.batch_key is not None:
                read_batches(joined, job.batch_key)
            return _estimate(job, joined, Path(folder), str(out), workers)
        finally:
            for source in joined.sources:
                source.close()


def _estimate(job: IngestJob, joined: JoinedSources, folder: Path, out: str, workers: int | None) -> WorkEstimate:
    nnz = sum(joined.estimate_nnz(number) for number in range(len(joined.sources)))
    notes = describe_sources(joined, 1, 0)
    n_tasks = len(sorting.plan_units(joined, plan_buckets(joined))["units"])
    n_processes = count_processes(workers, n_tasks)
    n_tried, seconds, disk_bytes = 0, None, round(3 * nnz)
    if any(source.spooled for source in joined.sources):
        notes.append(
            "A source is ordered by gene, so all of it is sorted before the first cell can be read: the time is not "
            "known, and the size is a guess of 3 bytes for a count."
        )
    else:
        trials = _Trials(job, joined, folder, nnz / max(joined.n_cells, 1))
        n_tried, per_cell = time_parts(trials.run())
        seconds = per_cell * joined.n_cells / n_processes
        disk_bytes = round(trials.cell_bytes / n_tried * joined.n_cells) + trials.other_bytes
    if job.top_genes is not None:
        notes.append(f"Sizes are those of all genes; {job.top_genes:,} are kept, and choosing them reads all twice.")
    scratch_bytes = round(SCRATCH_BYTES * nnz)
    return WorkEstimate(
        out=out,
        n_cells=joined.n_cells,
        n_genes=len(joined.var),
        n_tried=n_tried,
        seconds=seconds,
        memory_bytes=peak_memory_bytes() + round(FULL_BYTES * min(nnz / sorting.UNIT_NNZ, 1)),
        disk_bytes=disk_bytes,
        scratch_bytes=scratch_bytes,
        free_bytes=check_room(out, disk_bytes + scratch_bytes),
        n_processes=n_processes,
        notes=tuple(notes),
    )


class _Trials:
    """Ingests of runs of cells, one after the other, each with cells of every source.

    cell_bytes   of the counts and obs of all runs
    other_bytes  of what a store has once, such as var
    """

    def __init__(self, job: IngestJob, joined: JoinedSources, folder: Path, nnz_per_cell: float) -> None:
        self._job, self._joined, self._folder = job, joined, folder
        self._n_runs = max(round(nnz_per_cell * joined.n_cells / TRIAL_NNZ), 1)
        self.cell_bytes, self.other_bytes = 0, 0

    def run(self) -> Iterator[int]:
        """Yields the number of cells of a run, once they are ingested."""
        for number in range(self._n_runs):
            units = []
            for source, each in enumerate(self._joined.sources):
                start, stop = np.linspace(0, each.n_cells, self._n_runs + 1).astype(int)[[number, number + 1]].tolist()
                units += [[source, start, stop]] if stop > start else []
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                scratch = Path(folder)
                self._job.save(scratch)
                write_json(scratch / sorting.PLAN, {"n_buckets": 1, "units": units})
                open_ingests.keep(scratch, (self._job, self._joined))
                try:
                    with Workers(1, None) as crew:
                        shuffle(self._job, self._joined, scratch, folder, crew, lambda stage, done, total: None)
                finally:
                    open_ingests.forget(scratch)
                    sorting.kept_parts.forget(scratch)
                files = [file for file in (scratch / "result").rglob("*") if file.is_file()]
                sizes = {str(file.relative_to(scratch / "result")): file.stat().st_size for file in files}
            of_cells = sum(size for name, size in sizes.items() if name.startswith(("X/", "obs/")))
            self.cell_bytes, self.other_bytes = self.cell_bytes + of_cells, sum(sizes.values()) - of_cells
            yield sum(stop - start for _, start, stop in units)
