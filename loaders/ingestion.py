"""Ingest: count files in any order -> one cell store in a global random order, out of core.

Two passes. The first reads the sources piece by piece, checks the counts, and sorts the cells into buckets on disk by a
hash of their identity. The second reads bucket after bucket, orders each by a second hash, and appends it to the store.
The order is a pure function of (seed, source number, row, number of buckets), whatever the pieces were.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from atlasvi.loaders.buckets import Buckets
from atlasvi.loaders.counts import check_no_empty_cells
from atlasvi.loaders.errors import ColumnError, CountsError, SourceError
from atlasvi.loaders.hashing import mix64
from atlasvi.loaders.joined import JoinedSources, Piece
from atlasvi.loaders.outputs import write_folder_aside
from atlasvi.loaders.rows import gather_rows
from atlasvi.loaders.sources import open_source
from atlasvi.loaders.store_writer import StoreWriter
from atlasvi.loaders.tables import TextColumns, check_column, obs_to_record

BUCKET_NNZ = 2**22  # about 30 MB of a bucket in memory, and as much again while it is ordered
BUCKET_CELLS = 2**15
WRITE_CELLS = 2**11

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, cells done, cells in all)."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest made."""

    out: str
    n_cells: int
    n_genes: int
    nnz: int
    largest_count: int
    dropped_cells: int
    empty_cells: int
    sources: list[str]


def ingest(
    sources: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    layer: str | None = None,
    genes: Literal["union", "intersection"] = "union",
    gene_column: str | None = None,
    measurement: str | None = None,
    top_genes: int | None = None,
    batch_key: str | None = None,
    empty_cells: Literal["refuse", "drop", "keep"] = "refuse",
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> IngestReport:
    """Write the cells of all sources, shuffled, to a new cell store at `out`.

    sources      files or folders that `open_source` knows
    layer        where the counts are, if not in X
    genes        'union' or 'intersection' of the sources' genes, by name (or by `gene_column` of var)
    top_genes    keep only that many highly variable genes (seurat_v3), chosen within each value of `batch_key`
    empty_cells  what to do with cells without counts: 'refuse' those that have none in their source (a cell that only
                 the choice of genes left empty is kept and reported), 'drop' or 'keep' all that have none
    seed         of the order of the cells
    Memory: about 250 MB above the imports, plus var, whatever the number of cells.
    Raises SourceError, CountsError, GeneError, ColumnError on bad input and OutputError if `out` can't be written; the
    place of `out` is then as it was.
    """
    paths = [sources] if isinstance(sources, (str, Path)) else list(sources)
    with write_folder_aside(out) as scratch:
        opened = []
        try:
            for path in paths:
                opened.append(
                    open_source(path, layer=layer, gene_column=gene_column, measurement=measurement, scratch=scratch)
                )
            joined = JoinedSources(opened, genes)
            batches = read_batches(joined, batch_key) if batch_key is not None else None
            if top_genes is not None:
                choose_top_genes(joined, top_genes, batch_key, batches, progress)
            return _shuffle(joined, scratch, str(out), empty_cells, seed, progress)
        finally:
            for source in opened:
                source.close()


def choose_top_genes(
    joined: JoinedSources, n_top: int, batch_key: str | None, batches: pd.Index | None, progress: Progress
) -> pd.DataFrame:
    """Restrict `joined` to `n_top` highly variable genes; their statistics become columns of its var."""
    from atlasvi.loaders.variable_genes import find_variable_genes

    pass_names = iter(("variable genes, pass 1 of 2", "variable genes, pass 2 of 2"))

    def blocks() -> Iterator[tuple]:
        name, done = next(pass_names), 0
        for piece in joined.pieces():
            if batches is None:
                codes = np.zeros(len(piece.obs), np.int64)
            else:
                codes = batches.get_indexer(pd.Index(piece.obs[batch_key].astype(str)))
            yield piece.counts, codes
            done += len(piece.obs)
            progress(name, done, joined.n_cells)

    table = find_variable_genes(blocks, len(joined.var), 1 if batches is None else len(batches), n_top)
    joined.var = joined.var.assign(**{name: table[name].to_numpy() for name in table})
    joined.choose_genes(table["highly_variable"].to_numpy())
    return table


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


def _shuffle(
    joined: JoinedSources, scratch: Path, out: str, empty_cells: str, seed: int, progress: Progress
) -> IngestReport:
    buckets = Buckets(scratch / "buckets")
    dtypes = {**joined.dtypes, "source": pd.CategoricalDtype(joined.paths), "source_row": np.dtype(np.int64)}
    text = TextColumns(dtypes)
    n_buckets = n_cells = nnz = largest = done = n_empty = 0
    index_dtype = np.uint16 if len(joined.var) <= 2**16 else np.int32
    for piece in joined.pieces():
        if n_buckets == 0:
            n_buckets = _plan_buckets(joined, piece)
        done += len(piece.obs)
        row_nnz = np.diff(piece.counts.indptr)
        if empty_cells == "refuse":
            path = joined.sources[piece.source].path
            check_no_empty_cells(piece.source_nnz, path, piece.start, joined.name_cells(piece.source, piece.start))
        keys = mix64(piece.keys, seed)
        rows = np.flatnonzero(row_nnz > 0) if empty_cells == "drop" else np.arange(len(row_nnz))
        bucket_of = (keys % np.uint64(n_buckets)).astype(np.int64)
        rows = rows[np.argsort(bucket_of[rows], kind="stable")]
        record = {"keys": keys, "row_nnz": row_nnz.astype(np.int32), **obs_to_record(piece.obs)}
        text.see(record)
        indices = piece.counts.indices.astype(index_dtype)
        edges = np.searchsorted(bucket_of[rows], np.arange(n_buckets + 1))
        for bucket in np.flatnonzero(np.diff(edges)).tolist():
            chosen = rows[edges[bucket] : edges[bucket + 1]]
            part = {name: values[chosen] for name, values in record.items()}
            _, part["indices"], part["counts"] = gather_rows(piece.counts.indptr, indices, piece.counts.data, chosen)
            buckets.append(bucket, part)
        n_cells += len(rows)
        n_empty += int((row_nnz[rows] == 0).sum())
        nnz += piece.counts.nnz
        largest = max(largest, int(piece.counts.data.max(initial=0)))
        progress("reading", done, joined.n_cells)
    if nnz == 0:
        raise CountsError(
            f"{', '.join(joined.paths)}: no cell has a count in the genes used: there is nothing to store."
        )
    dtypes = text.resolve(dtypes, n_cells)
    sizes = dict(zip(joined.paths, (source.n_cells for source in joined.sources)))
    writer = StoreWriter(scratch / "result", n_cells, nnz, largest, joined.var, dtypes, sizes)
    written = 0
    for bucket in range(n_buckets):
        if record := buckets.read(bucket):
            buckets.discard(bucket)
            order = np.argsort(mix64(record.pop("keys"), seed + 1), kind="stable")
            row_nnz, indices, counts = record.pop("row_nnz"), record.pop("indices"), record.pop("counts")
            indptr = np.concatenate([[0], np.cumsum(row_nnz, dtype=np.int64)])
            for at in range(0, len(order), WRITE_CELLS):
                rows = order[at : at + WRITE_CELLS]
                part = {name: values[rows] for name, values in record.items()}
                _, indices_here, counts_here = gather_rows(indptr, indices, counts, rows)
                writer.append(row_nnz[rows], indices_here, counts_here, part)
            written += len(order)
            progress("writing", written, n_cells)
    writer.close()
    return IngestReport(out, n_cells, len(joined.var), nnz, largest, joined.n_cells - n_cells, n_empty, joined.paths)


def _plan_buckets(joined: JoinedSources, first: Piece) -> int:
    """So many buckets that one of average size fits the memory; a dense file is judged by its first piece."""
    per_cell = first.counts.nnz / max(first.counts.shape[0], 1)
    nnz = sum(source.nnz if source.nnz is not None else per_cell * source.n_cells for source in joined.sources)
    if joined.n_cells == 0:
        raise SourceError(f"{', '.join(joined.paths)}: no cells.")
    return max(1, round(nnz / BUCKET_NNZ), round(joined.n_cells / BUCKET_CELLS))
