"""Several sources as one: genes aligned by name, `obs` columns converted to common dtypes, categories merged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse

from atlasvi.loaders.errors import GeneError
from atlasvi.loaders.identity import cell_keys
from atlasvi.loaders.rows.count_checks import CellNames, check_counts, round_values
from atlasvi.loaders.sources.open_source import drop_versions
from atlasvi.loaders.sources.source_protocol import Source
from atlasvi.loaders.tables.column_names import find_storable_names, set_reserved_aside
from atlasvi.loaders.tables.frames import make_frame, make_names, make_series
from atlasvi.loaders.tables.merged_columns import convert_column, join_column, join_dtypes

PIECE_NNZ = 2**21  # stored counts read at a time: about 16 MB as float32 CSR
MOST_ROWS = 2**17
SAMPLE_CELLS = 256
SLICE_ROWS = 2**16


@dataclass
class Piece:
    """Rows [start, stop) of a source, by its index: counts over the joined genes, and `obs` with the cells' origin."""

    source: int
    start: int
    counts: sparse.csr_matrix  # unsigned integers [rows, genes]
    source_nnz: np.ndarray  # int [rows]: stored counts of each cell over all genes of its source
    obs: pd.DataFrame
    n_values: int  # values stored in these rows of the source
    n_rounded: int  # how many of them were rounded

    @property
    def keys(self) -> np.ndarray:
        """uint64 hash of each cell's identity, from its source and row."""
        return cell_keys(self.source, np.arange(self.start, self.start + self.counts.shape[0]))


class JoinedSources:
    """One or more sources over one list of genes, read piece by piece.

    how      'union': genes of the first source, then those that each further one adds; missing genes count zero.
             'intersection': genes of the first source that all others have.
             None: union, if the sources share at least half of the genes of the one that has the fewest.
    rounded  accept fractions, and round each to the nearest whole number
    fractions  accept fractions, unchanged (see `check_counts`)
    renamed  attribute: obs columns whose names no store can hold, and their new names
    Raises GeneError where too few genes are shared (for a union: none, since such files seldom belong to one atlas).
    """

    def __init__(
        self,
        sources: Sequence[Source],
        how: Literal["union", "intersection"] | None = None,
        rounded: bool = False,
        fractions: bool = False,
    ) -> None:
        self.sources, self._rounded, self._fractions = list(sources), rounded, fractions
        self.n_cells = sum(source.n_cells for source in sources)
        shared = find_shared(self.sources, how)
        self.var = _join_var(self.sources, shared if how == "intersection" else None)
        self._join_obs()
        self.offsets = np.cumsum([0] + [source.n_cells for source in sources])

    def _join_obs(self) -> None:
        """Find the columns of obs: their joined `dtypes` (see merged_columns.py), and their names in each source."""
        heads = [source.read_obs(0, 0) for source in self.sources]
        aside = [set_reserved_aside(head) for head in heads]
        names = [[before.get(name, name) for name in head] for head, before in zip(heads, aside)]
        together = list(dict.fromkeys(name for some in names for name in some))
        self.renamed = find_storable_names(together)
        self._columns = [[self.renamed.get(name, name) for name in some] for some in names]
        tables = [head.set_axis(columns, axis=1) for head, columns in zip(heads, self._columns)]
        self.dtypes: dict[str, object] = {
            name: join_column(tables, name, self._read_own_obs)
            for name in (self.renamed.get(name, name) for name in together)
        }

    def _read_own_obs(self, number: int) -> Iterator[pd.DataFrame]:
        """`obs` of one source in slices, with its own dtypes and the joined names."""
        n_cells = self.sources[number].n_cells
        for start in range(0, n_cells, SLICE_ROWS):
            obs = self.sources[number].read_obs(start, min(start + SLICE_ROWS, n_cells))
            yield obs.set_axis(self._columns[number], axis=1)

    def choose_genes(self, chosen: np.ndarray) -> None:
        """Keep only genes where `chosen` (bool [genes]) is True."""
        self.var = self.var[chosen]

    def all_pieces(self, nnz: int = PIECE_NNZ) -> Iterator[Piece]:
        """All cells in source order, in pieces of about `nnz` stored counts. Raises CountsError on invalid counts."""
        for number, source in enumerate(self.sources):
            yield from self.pieces(number, 0, source.n_cells, nnz)

    def pieces(self, number: int, start: int, end: int, nnz: int = PIECE_NNZ) -> Iterator[Piece]:
        """Rows [start, end) of the source with index `number`, in pieces as in `all_pieces`."""
        source = self.sources[number]
        n_genes = len(source.var)
        per_cell = source.nnz / source.n_cells if source.nnz is not None else n_genes
        while start < end:
            rows = nnz / max(per_cell, 1)
            if source.nnz is None:  # dense, or not known before: estimated from the last piece
                rows = min(rows, 8 * nnz / n_genes)
            stop = min(start + int(np.clip(rows, 1, MOST_ROWS)), end)
            piece = self.read_piece(number, start, stop)
            per_cell = piece.counts.nnz / (stop - start) if source.nnz is None else per_cell
            yield piece
            start = stop

    def estimate_nnz(self, number: int) -> float:
        """Stored counts of source `number`; estimated from its first cells if not known before reading."""
        source = self.sources[number]
        if source.nnz is not None:
            return source.nnz
        head = min(SAMPLE_CELLS, source.n_cells)
        return self.read_counts(number, 0, head)[0].nnz / head * source.n_cells

    def read_piece(self, number: int, start: int, stop: int) -> Piece:
        """Rows [start, stop) of source `number`. Raises CountsError on invalid counts."""
        counts, source_nnz, n_values, n_rounded = self._read_counts(number, start, stop)
        return Piece(number, start, counts, source_nnz, self.read_obs(number, start, stop), n_values, n_rounded)

    def read_counts(self, number: int, start: int, stop: int) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts of rows [start, stop) over the joined genes, and stored counts per row over all genes of the source.

        Raises CountsError on invalid counts.
        """
        return self._read_counts(number, start, stop)[:2]

    def _read_counts(self, number: int, start: int, stop: int) -> tuple[sparse.csr_matrix, np.ndarray, int, int]:
        source = self.sources[number]
        stored = source.read_counts(start, stop)
        matrix, n_rounded = round_values(stored) if self._rounded else (stored, 0)
        name_cell = self.name_cells(number, start)
        names = source.path, name_cell, source.var.index, source.layer, source.layers
        counts = check_counts(matrix, *names, fractions=self._fractions)
        return self._align(counts, source), np.diff(counts.indptr), stored.nnz, n_rounded

    def name_cells(self, number: int, start: int) -> CellNames:
        """A function for errors that names rows of a source, counted from `start`."""
        return lambda row: str(self.sources[number].read_obs(start + row, start + row + 1).index[0])

    def read_obs(self, number: int, start: int, stop: int) -> pd.DataFrame:
        """`obs` of rows [start, stop) of one source, with the joined columns, `source` and `source_row`."""
        raw = self.sources[number].read_obs(start, stop).set_axis(self._columns[number], axis=1)
        columns = {name: convert_column(raw, name, dtype) for name, dtype in self.dtypes.items()}
        paths = self.paths
        columns["source"] = pd.Categorical.from_codes(np.full(len(raw), number), make_names(paths))
        columns["source_row"] = np.arange(start, stop)
        return make_frame(columns, make_names(raw.index))

    @property
    def paths(self) -> list[str]:
        """The name of each source, made unique where the same path was given twice."""
        paths = [source.path for source in self.sources]
        return [f"{path} ({k})" if path in paths[:k] else path for k, path in enumerate(paths)]

    def _align(self, counts: sparse.csr_matrix, source: Source) -> sparse.csr_matrix:
        to_joined = self.var.index.get_indexer(source.var.index)
        if len(to_joined) == len(self.var) and (to_joined == np.arange(len(to_joined))).all():
            return counts
        columns = to_joined[counts.indices]
        kept = columns >= 0
        ends = np.concatenate([[0], np.cumsum(kept)])[counts.indptr]
        aligned = sparse.csr_matrix(
            (counts.data[kept], columns[kept].astype(np.int32), ends), shape=(counts.shape[0], len(self.var))
        )
        aligned.sort_indices()
        return aligned


def find_shared(sources: list[Source], how: str | None) -> pd.Index:
    """The genes that all sources have, in the order of the first.

    Raises GeneError where there are none, or, if `how` is None, fewer than half of the genes of the smallest source.
    """
    names = [source.var.index for source in sources]
    shared, fewest = intersect(names), min(len(index) for index in names)
    if len(shared) >= (fewest / 2 if how is None else 1):
        return shared
    examples = "; ".join(f"{source.path}: {', '.join(map(str, source.var.index[:2]))}" for source in sources[:3])
    what = f"share {len(shared):,} of {fewest:,} genes" if len(shared) else "have no gene in common"
    advice = "choose a column of var with equal names: --gene-column NAME, or PATH::gene_column=NAME for one source"
    if len(equal := intersect([drop_versions(index) for index in names])) >= fewest / 2:
        advice = f"without the versions of the ids it would be {len(equal):,}: pass PATH::gene_versions=drop for each"
    union = "; to join them nevertheless, pass --genes union" if len(shared) else ", or ingest them separately"
    raise GeneError(f"The sources {what} ({examples}): {advice}{union}.")


def intersect(names: list[pd.Index]) -> pd.Index:
    """The names that are in all lists, in the order of the first."""
    shared = names[0]
    for index in names[1:]:
        shared = shared[shared.isin(index)]
    return shared


def _join_var(sources: list[Source], genes: pd.Index | None) -> pd.DataFrame:
    """var of `genes`; None: the genes of the first source, then those that each further one adds."""
    if genes is None:
        genes = sources[0].var.index
        for source in sources[1:]:
            genes = genes.append(source.var.index[~source.var.index.isin(genes)])
    return _join_var_columns([source.var for source in sources], genes)


def _join_var_columns(tables: list[pd.DataFrame], genes: pd.Index) -> pd.DataFrame:
    """The columns of var of all tables; for each gene, the value of the first table that has it."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    columns = {}
    for name in names:
        having = [table for table in tables if name in table]
        dtype = join_column(having, name, lambda number: [having[number]])  # noqa: B023  called here
        missable = join_dtypes([dtype, None])
        joined = make_series(convert_column(pd.DataFrame(index=genes), name, missable), genes)
        for table in having:
            values = make_series(convert_column(table, name, missable), table.index).reindex(genes)
            joined = joined.where(joined.notna(), values)
        columns[name] = convert_column(joined.to_frame(name), name, missable if joined.isna().any() else dtype)
    storable = find_storable_names(names)
    return make_frame({storable.get(name, name): values for name, values in columns.items()}, make_names(genes))
