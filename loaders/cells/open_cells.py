"""What can be trained on: cells in blocks of rows, from a cell store or straight from a source."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.errors import GeneError, SourceError
from atlasvi.loaders.identity import cell_keys
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.rows.chosen_genes import GeneChoice
from atlasvi.loaders.rows.count_checks import check_no_empty_cells
from atlasvi.loaders.sources.data_spec import ANNDATA_FORMATS, DataSpec, parse_source
from atlasvi.loaders.sources.joined import JoinedSources
from atlasvi.loaders.sources.open_source import open_spec, recognise
from atlasvi.loaders.sources.run_lengths import count_mixed_runs, describe_mixing
from atlasvi.loaders.store_files import is_cell_store
from atlasvi.loaders.tables.store_tables import check_column


class CellData(Protocol):
    """Cells x genes on disk, read block by block.

    Cells [block_starts[b], block_starts[b + 1]) make block b; `group_blocks` blocks at a time are mixed when shuffling.
    """

    spec: DataSpec  # how they were opened
    layer: str | None  # of AnnData that the counts are in, as scvi-tools knows it; None: X, or it is no AnnData
    path: str
    n_cells: int
    var: pd.DataFrame
    obs_columns: list[str]
    source_sizes: list[int]  # rows that each source had: what `source_row` counts to
    block_starts: np.ndarray
    group_blocks: int

    @property
    def mixing(self) -> str:
        """How well cells are mixed when shuffling, in a sentence."""

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns."""

    def read_block(self, block: int) -> Rows:
        """The counts of one block."""

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop), `source` and `source_row` among its columns; the index holds cell names."""

    def read_column(self, name: str) -> pd.Series:
        """One `obs` column of all cells. Raises ColumnError, naming those that are there."""

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: a hash of each cell's identity, the same from a store as from its source."""

    def close(self) -> None:
        """Let go of the files."""


class SourceCells:
    """One source seen as cells in blocks: training straight from the file, at the speed that its layout allows.

    A source is in the order that its authors gave it, so shuffling mixes runs of neighbouring cells, as short as its
    layout likes to be read, 16,384 cells or more at a time; a cell store, shuffled once as a whole, mixes better and
    reads faster. (A collection of annbatch is shuffled too.)
    """

    def __init__(self, joined: JoinedSources, spec: DataSpec) -> None:
        self._joined, self.spec, self._source = joined, spec, joined.sources[0]
        source = self._source
        self.path, self.n_cells, self.var = source.path, joined.n_cells, joined.var
        is_layer = spec.format in ANNDATA_FORMATS and source.layer not in ("X", "raw", "raw/X")
        self.layer = source.layer if is_layer else None
        self.obs_columns = [*joined.dtypes, "source", "source_row"]
        self.source_sizes = [joined.n_cells]
        run = source.count_run_cells()
        self.block_starts = np.append(np.arange(0, self.n_cells, run), self.n_cells)
        self.group_blocks = count_mixed_runs(run, source.shuffled)
        self.mixing = describe_mixing(self.n_cells, run, self.group_blocks, source.shuffled)

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns."""
        return self.var.index

    def read_block(self, block: int) -> Rows:
        """The counts of one block. Raises CountsError on what is no count, and on empty cells unless they are kept."""
        start, stop = (int(edge) for edge in self.block_starts[block : block + 2])
        rows = self._source.read_narrow(start, stop)
        if rows is None:  # something is odd: the careful way puts it right or says what it is
            counts, row_nnz = self._joined.read_counts(0, start, stop)
            indices = counts.indices.astype(np.uint16 if len(self.var) <= 2**16 else np.int32)
            rows = Rows.from_csr(start, counts.indptr, indices, counts.data)
        else:
            row_nnz = rows.lengths
        if self.spec.empty_cells != "keep":
            check_no_empty_cells(row_nnz, self.path, start, self._joined.name_cells(0, start))
        return rows

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop)."""
        return self._joined.read_obs(0, start, stop)

    def read_column(self, name: str) -> pd.Series:
        """One `obs` column of all cells. Raises ColumnError, naming those that are there."""
        check_column(name, self.obs_columns, self.path)
        step = 2**17
        slices = [self.read_obs(at, at + step)[name] for at in range(0, self.n_cells - step, step)]
        slices.append(self.read_obs(len(slices) * step, self.n_cells)[name])
        return pd.concat(slices, ignore_index=True)

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: a hash of each cell's identity."""
        return cell_keys(0, np.arange(start, stop))

    def allow_fractions(self) -> "SourceCells":
        """The same cells, with numbers that are not whole taken as they are, for the normal likelihood."""
        return SourceCells(JoinedSources(self._joined.sources, fractions=True), replace(self.spec, values="numbers"))

    def close(self) -> None:
        """Let go of the file."""
        self._joined.sources[0].close()


class SelectedGenes:
    """Cells seen through a list of genes: others left out, columns in the order of the list, zeros where one lacks."""

    def __init__(self, data: CellData, genes: pd.Index) -> None:
        self._data = data
        self._choice = GeneChoice(genes.get_indexer(data.genes), len(genes))
        self.var = data.var.reindex(genes)
        self.path, self.n_cells, self.obs_columns = data.path, data.n_cells, data.obs_columns
        self.source_sizes, self.block_starts, self.group_blocks = (
            data.source_sizes,
            data.block_starts,
            data.group_blocks,
        )
        self.read_obs, self.read_column = data.read_obs, data.read_column
        self.split_keys, self.close = data.split_keys, data.close
        self.spec, self.layer = data.spec, data.layer

    @property
    def mixing(self) -> str:
        """How well cells are mixed when shuffling."""
        return self._data.mixing

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns."""
        return self.var.index

    def read_block(self, block: int) -> Rows:
        """The counts of one block over the chosen genes."""
        return self._choice.apply(self._data.read_block(block))


def select_genes(data: CellData, genes: Sequence[str]) -> CellData:
    """`data` with just these genes, in this order. Raises GeneError, naming the first, if some are not there."""
    wanted = pd.Index(genes)
    if wanted.equals(data.genes):
        return data
    if missing := wanted[~wanted.isin(data.genes)].tolist():
        raise GeneError(
            f"{data.path}: {len(missing)} of the {len(wanted):,} genes of the model are not there "
            f"(first: {missing[0]!r}): give the data that the model was trained on, or, if genes go by another name "
            "here, the column of var that has the model's: PATH::gene_column=NAME."
        )
    return SelectedGenes(data, wanted)


def align_genes(data: CellData, genes: Sequence[str]) -> tuple[CellData, list[str]]:
    """`data` with just these genes, in this order, and those that it lacks: they count zero in every cell.

    Raises GeneError if it has none of them.
    """
    wanted = pd.Index(genes)
    missing = find_missing(data.path, data.genes, wanted)
    return (data if wanted.equals(data.genes) else SelectedGenes(data, wanted)), missing


def find_missing(path: str, there: pd.Index, wanted: pd.Index) -> list[str]:
    """Genes that are wanted and not there. Raises GeneError if none is."""
    missing = wanted[~wanted.isin(there)].tolist()
    if len(missing) == len(wanted):
        raise GeneError(
            f"{path}: it has none of the {len(wanted):,} genes of the model (the model: {', '.join(wanted[:2])}; the "
            f"data: {', '.join(map(str, there[:2]))}): name its genes as the model does."
        )
    return missing


def add_column(data: CellData, name: str, values: Sequence[Any]) -> CellData:
    """The same cells with one more column of obs, one value a cell."""
    seen: Any = copy.copy(data)
    seen.obs_columns = [*data.obs_columns, name]
    seen.read_column = lambda asked: pd.Series(values) if asked == name else data.read_column(asked)
    return seen


def allow_fractions(data: CellData, allowed: bool = True) -> CellData:
    """The same cells; those of a source with numbers that are not whole taken as they are, if they are `allowed`."""
    return data.allow_fractions() if allowed and isinstance(data, SourceCells) else data


def open_cells(
    data: DataSpec | str | Path,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    measurement: str | None = None,
    empty_cells: Literal["refuse", "keep"] | None = None,
    values: Literal["counts", "numbers"] | None = None,
    like: DataSpec | None = None,
) -> CellData:
    """A cell store or any source, ready to be trained on. What the options mean `open_source` and `DataSpec` say.

    like  what other data was opened with: an option that is not given here is as it was there, where it applies
    Raises SourceError if it can't be opened, or if an option is given that a cell store does not have.
    """
    options = {"layer": layer, "gene_column": gene_column, "measurement": measurement}
    spec = parse_source(data, **options, empty_cells=empty_cells, values=values)
    if is_cell_store(spec.path):
        return CellStore(spec.path, spec)
    spec = spec.fill_from(like or DataSpec(spec.path), recognise(spec.path))
    if spec.empty_cells == "drop":
        raise SourceError(f"{spec.path}: only ingest drops cells without counts: keep them, or ingest it first.")
    return SourceCells(JoinedSources([open_spec(spec)], fractions=spec.takes_fractions), spec)
