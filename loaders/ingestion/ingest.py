"""Ingest: count files in any order -> one cell store in a global random order, out of core.

Two passes of independent tasks, so that processes can share them and an ingest that was killed can be resumed. The
first reads runs of rows, checks the counts, and sorts the cells into buckets by a hash of their identity
(bucket_sorting.py). The second orders each bucket by a second hash and encodes it (store_writer.py); the buckets are
joined to the store. The order is a pure function of (seed, source index, row, number of buckets).
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from atlasvi.loaders.cells.cell_store import PROFILES, CellStore
from atlasvi.loaders.errors import ColumnError, CountsError, SourceError
from atlasvi.loaders.ingestion import bucket_sorting as sorting
from atlasvi.loaders.ingestion import store_writer
from atlasvi.loaders.ingestion.ingest_job import (
    GENES,
    SCRATCH_FORMAT,
    IngestJob,
    identify_source,
    open_ingests,
    open_sources,
    restrict_genes,
)
from atlasvi.loaders.jobs import open_job_folder
from atlasvi.loaders.manifest import write_json
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.rows.block_rows import gather_rows
from atlasvi.loaders.sources.data_spec import list_sources
from atlasvi.loaders.sources.joined import JoinedSources, intersect
from atlasvi.loaders.tables.frames import make_names
from atlasvi.loaders.tables.store_tables import check_column
from atlasvi.loaders.workers import Task, Workers, make_task

BUCKET_NNZ = 2**24  # counts of a bucket: 50 to 100 MB in memory while it is ordered
BUCKET_CELLS = 2**18

Progress = Callable[[str, int, int], None]
"""Called with (name of the stage, cells done, cells in all)."""


@dataclass(frozen=True)
class IngestReport:
    """The result of an ingest."""

    out: str
    n_cells: int
    n_genes: int
    nnz: int
    largest_count: int
    dropped_cells: int
    empty_cells: int
    sources: list[str]
    renamed_columns: dict[str, str]
    """Columns of obs whose names no store can hold, and their new names."""
    notes: list[str] = field(default_factory=list)  # choices and assumptions that the user must see, a sentence each


def ingest(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    layer: str | None = None,
    genes: Literal["union", "intersection"] | None = None,
    gene_column: str | None = None,
    measurement: str | None = None,
    top_genes: int | None = None,
    batch_key: str | None = None,
    empty_cells: Literal["refuse", "drop", "keep"] = "refuse",
    rounded: bool = False,
    seed: int = 0,
    profile: Literal["fast", "small"] = "fast",
    workers: int | None = None,
    dask: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> IngestReport:
    """Write the cells of all sources, shuffled, to a new cell store at `out`.

    sources      files or folders in any format of `open_source`, each with options if need be
                 (PATH::layer=raw,gene_column=id), or tables of sources (.toml; see data_spec.py)
    layer        where the counts are, if not in X
    genes        'union' or 'intersection' of the sources' genes, by name (or by `gene_column` of var); None: union, if
                 they share at least half of the genes of the source that has the fewest
    top_genes    keep only this number of highly variable genes (seurat_v3), chosen within each value of `batch_key`
    empty_cells  what to do with cells without counts, unless a source has the option itself: 'refuse' those that have
                 none in their source (a cell that has none only in the chosen genes is kept and reported), 'drop' or
                 'keep' all that have none
    rounded      accept fractions, which some tools estimate, and round each to the nearest whole number
    seed         of the order of the cells
    profile      'fast' to read, or 'small': two thirds of the size, at about half the speed
    workers      number of processes; None: one per core where there is enough to do
    dask         address of a Dask scheduler whose workers do it; they must see sources and `out` at the same paths, or
                 read and write the same buckets
    Memory: about 300 MB per process above the imports, plus var, whatever the number of cells; disk: about 5 bytes per
    stored count until it is done, in the bucket if `out` is there. After a kill or Ctrl-C the same call resumes with
    the unfinished part.
    Raises SourceError, CountsError, GeneError, ColumnError on bad input and OutputError if `out` can't be written; the
    place of `out` is then as it was.
    """
    job = plan_job(
        sources,
        dask is not None,
        layer=layer,
        genes=genes,
        gene_column=gene_column,
        measurement=measurement,
        top_genes=top_genes,
        batch_key=batch_key,
        empty_cells=empty_cells,
        rounded=rounded,
        seed=seed,
        profile=profile,
    )
    with open_job_folder(out, job) as scratch:
        joined = open_sources(job, scratch)
        try:
            batches = read_batches(joined, batch_key) if batch_key is not None else None
            if top_genes is not None and not (scratch / GENES).is_file():
                table = choose_top_genes(joined, top_genes, batch_key, batches, progress)
                content = io.BytesIO()
                np.savez(content, **{str(name): table[name].to_numpy() for name in table})
                write_whole(scratch / GENES, content.getvalue())
                restrict_genes(joined, scratch)
            job.save(scratch)
            open_ingests.keep(scratch, (job, joined))
            with Workers(workers, dask) as crew:
                return shuffle(job, joined, scratch, str(out), crew, progress)
        finally:
            open_ingests.forget(scratch)
            sorting.kept_parts.forget(scratch)
            for source in joined.sources:
                source.close()


def plan_job(
    sources: Sequence[str | Path] | str | Path,
    on_cluster: bool = False,
    *,
    layer: str | None = None,
    genes: Literal["union", "intersection"] | None = None,
    gene_column: str | None = None,
    measurement: str | None = None,
    top_genes: int | None = None,
    batch_key: str | None = None,
    empty_cells: Literal["refuse", "drop", "keep"] = "refuse",
    rounded: bool = False,
    seed: int = 0,
    profile: Literal["fast", "small"] = "fast",
) -> IngestJob:
    """The job of `ingest` with these arguments. Raises SourceError for sources and options that do not fit."""
    paths = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}: choose one of {', '.join(PROFILES)}")
    specs = list_sources(paths, layer=layer, gene_column=gene_column, measurement=measurement, empty_cells=empty_cells)
    for spec in specs:
        if spec.takes_fractions:
            raise SourceError(
                f"{spec.path}: a cell store keeps whole counts, and its option is values={spec.values}: train directly "
                "from the source, or round with --round."
            )
        if spec.missing_genes is not None:
            raise SourceError(
                f"{spec.path}: missing_genes={spec.missing_genes} is about the genes of a model, and ingest has none: "
                "--genes union fills genes that a source lacks with zeros."
            )
    if on_cluster:  # its processes run in other folders
        specs = [spec.make_absolute() for spec in specs]
    return IngestJob(
        scratch_format=SCRATCH_FORMAT,
        sources=[asdict(spec) for spec in specs],
        identities=[identify_source(spec.place) for spec in specs],
        genes=genes,
        rounded=rounded,
        top_genes=top_genes,
        batch_key=batch_key,
        seed=seed,
        profile=profile,
    )


def choose_top_genes(
    joined: JoinedSources, n_top: int, batch_key: str | None, batches: pd.Index | None, progress: Progress
) -> pd.DataFrame:
    """Choose the `n_top` most variable genes; returns statistics of all genes, as columns for var."""
    from atlasvi.loaders.ingestion.variable_genes import find_variable_genes

    pass_names = iter(("variable genes, pass 1 of 2", "variable genes, pass 2 of 2"))

    def blocks() -> Iterator[tuple]:
        name, done = next(pass_names), 0
        for piece in joined.all_pieces():
            if batches is None:
                codes = np.zeros(len(piece.obs), np.int64)
            else:
                codes = batches.get_indexer(pd.Index(piece.obs[batch_key].astype(str)))
            yield piece.counts, codes
            done += len(piece.obs)
            progress(name, done, joined.n_cells)

    return find_variable_genes(blocks, len(joined.var), 1 if batches is None else len(batches), n_top)


def read_batches(joined: JoinedSources, name: str) -> pd.Index:
    """The distinct values of an `obs` column, as text, sorted.

    Raises ColumnError if the column is not there, has one value, or has missing values.
    """
    check_column(name, list(joined.dtypes), ", ".join(joined.paths))
    values: set[str] = set()
    for number, source in enumerate(joined.sources):
        for start in range(0, source.n_cells, 2**16):
            column = joined.read_obs(number, start, min(start + 2**16, source.n_cells))[name]
            if column.isna().any():
                row = start + int(np.flatnonzero(column.isna())[0])
                raise ColumnError(
                    f"{source.path}: obs column {name!r} has missing values (first: row {row}): fill them in, or drop "
                    "those cells."
                )
            values.update(column.astype(str).unique())
    if len(values) == 1:
        raise ColumnError(
            f"{', '.join(joined.paths)}: obs column {name!r} has one value ({values.pop()!r}), so there are no batches "
            "to tell apart: leave --batch-key out, or name another column."
        )
    return pd.Index(sorted(values))


def shuffle(
    job: IngestJob, joined: JoinedSources, scratch: Place, out: str, workers: Workers, progress: Progress
) -> IngestReport:
    """The two passes, run by the workers; units and buckets that an earlier run finished are not repeated."""
    folders = [scratch / sorting.FOLDER, scratch / store_writer.FOLDER]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    if not (scratch / sorting.PLAN).is_file():
        write_json(scratch / sorting.PLAN, sorting.plan_units(joined, plan_buckets(joined)))
    plan = sorting.read_plan(scratch)
    sizes = [stop - start for _, start, stop in plan["units"]]
    # a matrix that the first read must sort by row is sorted here once, not by each process
    here = any(source.spooled for source in joined.sources)
    _run(sorting.sort_unit, sizes, scratch, workers, "reading", progress, here)
    summaries = sorting.read_summaries(scratch)
    n_cells, nnz, n_empty = (sum(summary[name] for summary in summaries) for name in ("cells", "nnz", "empty"))
    largest = max(summary["largest"] for summary in summaries)
    if nnz == 0:
        raise CountsError(
            f"{', '.join(joined.paths)}: no cell has a count in the genes used: there is nothing to store."
        )
    cell_starts, nnz_starts = sorting.count_buckets(sorting.kept_parts.get(scratch))
    source_sizes = dict(zip(joined.paths, (source.n_cells for source in joined.sources)))
    attributes = store_writer.plan_store(scratch, len(joined.var), largest, source_sizes, nnz_starts, job.profile)
    sizes = np.diff(cell_starts).tolist()
    _run(store_writer.encode_bucket, sizes, scratch, workers, "writing", progress)
    dtypes = {
        **joined.dtypes,
        "source": pd.CategoricalDtype(make_names(joined.paths)),
        "source_row": np.dtype(np.int64),
    }
    dtypes = sorting.merge_text(joined.dtypes, summaries).resolve(dtypes, n_cells)
    store_writer.assemble_store(
        scratch,
        attributes,
        n_cells,
        plan["n_buckets"],
        joined.var,
        dtypes,
        lambda done: progress("joining", done, n_cells),
    )
    check_store(scratch / "result")
    notes = describe_sources(joined, *(sum(summary[name] for summary in summaries) for name in ("values", "rounded")))
    n_dropped = joined.n_cells - n_cells
    return IngestReport(
        out, n_cells, len(joined.var), nnz, largest, n_dropped, n_empty, joined.paths, joined.renamed, notes
    )


def describe_sources(joined: JoinedSources, n_values: int, n_rounded: int) -> list[str]:
    """What the user must see: chosen layers, shared genes, rounded values; a sentence each."""
    notes = [note for source in joined.sources for note in source.notes]
    if len(joined.sources) > 1:
        n_genes = len(intersect([joined.var.index, *(source.var.index for source in joined.sources)]))
        notes.append(f"Genes that all sources have: {n_genes:,} of {len(joined.var):,}.")
    if n_rounded:
        notes.append(
            f"{n_rounded:,} of {n_values:,} stored values ({n_rounded / n_values:.2%}) were not whole numbers and were "
            "rounded."
        )
    return notes


def check_store(path: Place) -> None:
    """Read the first and the last block of a new store as a loader will; raises what that raises."""
    store = CellStore(path)
    for block in (0, len(store.block_starts) - 2):
        rows = store.read_block(block)
        gather_rows(*rows.to_csr(), np.arange(len(rows)))
    store.close()


def _run(
    function: Callable[[str, int], object],
    sizes: list[int],
    scratch: Place,
    workers: Workers,
    stage: str,
    progress: Progress,
    here: bool = False,
) -> None:
    """Run a task for each of `sizes` (in cells), and report the progress."""
    done = 0

    def tell(task: Task) -> None:
        nonlocal done
        done += sizes[task[2]]
        progress(stage, done, sum(sizes))

    # absolute, since a worker of a cluster runs in another folder
    tasks = [make_task(function, str(scratch.absolute()), number) for number in range(len(sizes))]
    workers.run(tasks, tell, here)


def plan_buckets(joined: JoinedSources) -> int:
    """Number of buckets such that one of average size fits into memory."""
    nnz = sum(joined.estimate_nnz(number) for number in range(len(joined.sources)))
    return max(1, round(nnz / BUCKET_NNZ), round(joined.n_cells / BUCKET_CELLS))
