"""One source seen as cells in blocks: training directly from the file, at the speed that its layout allows."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from atlasvi.loaders.identity import cell_keys
from atlasvi.loaders.rows.block_rows import Rows, choose_index_dtype
from atlasvi.loaders.rows.count_checks import check_no_empty_cells
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.joined import JoinedSources
from atlasvi.loaders.sources.run_lengths import count_mixed_runs, describe_mixing
from atlasvi.loaders.sources.source_protocol import Source
from atlasvi.loaders.tables.store_tables import check_column

SLICE_CELLS = 2**17  # of obs at a time: to get one column, all columns are read


class SourceCells:
    """A source as `Cells`.

    A source is in the order of its authors, so shuffling mixes runs of neighbouring cells: runs as short as the file's
    layout allows, 16,384 cells or more at a time. A cell store was shuffled once as a whole, mixes better and reads
    faster. (A collection of annbatch was shuffled too.)
    spec  replaces that of the source
    """

    def __init__(self, source: Source, spec: DataSpec | None = None) -> None:
        self._source, self.spec = source, spec or source.spec
        self._joined = JoinedSources([source], fractions=self.spec.takes_fractions)
        self.path, self.n_cells, self.var, self.layer = source.path, source.n_cells, source.var, source.anndata_layer
        self.obs_columns = [*self._joined.dtypes, "source", "source_row"]
        self.source_sizes = [self.n_cells]
        self._kept: tuple[tuple[int, int] | None, pd.DataFrame] = None, pd.DataFrame()  # a slice of obs
        run = source.count_run_cells()
        self.block_starts = np.append(np.arange(0, self.n_cells, run), self.n_cells)
        self.group_blocks = count_mixed_runs(run, source.shuffled)
        self.mixing = describe_mixing(self.n_cells, run, self.group_blocks, source.shuffled)

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns."""
        return self.var.index

    def read_block(self, block: int) -> Rows:
        """The counts of one block. Raises CountsError on invalid counts, and on empty cells unless they are kept."""
        start, stop = (int(edge) for edge in self.block_starts[block : block + 2])
        rows = self._source.read_narrow(start, stop)
        if rows is None:  # something is irregular: the slow way corrects it or reports it
            counts, row_nnz = self._joined.read_counts(0, start, stop)
            indices = counts.indices.astype(choose_index_dtype(len(self.var)))
            rows = Rows.from_csr(start, counts.indptr, indices, counts.data)
        else:
            row_nnz = rows.lengths
        if self.spec.empty_cells != "keep":
            check_no_empty_cells(row_nnz, self.path, start, self._joined.name_cells(0, start))
        return rows

    def ask_ahead(self, block: int) -> object:
        """Begin to read the counts of one block from a bucket; what is returned must be kept until they are read."""
        return self._source.ask_ahead(*(int(edge) for edge in self.block_starts[block : block + 2]))

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop)."""
        return self._joined.read_obs(0, start, stop)

    def read_names(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Names of cells [start, stop), or of all."""
        slices = [obs.index for obs in self._slice_obs(start, self.n_cells if stop is None else stop)]
        return slices[0].append(slices[1:])

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One `obs` column of cells [start, stop), or of all. Raises ColumnError, naming those that are there."""
        check_column(name, self.obs_columns, self.path)
        slices = self._slice_obs(start, self.n_cells if stop is None else stop)
        # copied, since a column of a table keeps all columns of its dtype in memory
        return pd.concat([obs[name].copy() for obs in slices], ignore_index=True)

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: a hash of each cell's identity."""
        return cell_keys(0, np.arange(start, stop))

    def allow_fractions(self) -> "SourceCells":
        """The same cells, accepting values that are not whole."""
        return SourceCells(self._source, replace(self.spec, values="numbers"))

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _slice_obs(self, start: int, stop: int) -> Iterator[pd.DataFrame]:
        """`obs` of cells [start, stop) in slices; one empty slice if there are no cells.

        The latest slice is cached, since a source reads all columns of a slice, and callers want them one by one.
        """
        for at in range(start, max(stop, start + 1), SLICE_CELLS):
            wanted = at, min(at + SLICE_CELLS, stop)
            kept, obs = self._kept
            if kept != wanted:
                self._kept = wanted, (obs := self.read_obs(*wanted))
            yield obs
