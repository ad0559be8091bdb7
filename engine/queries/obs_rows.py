"""Values of chosen cells from obs, read only in slices that contain chosen cells."""

from collections.abc import Collection, Iterator

import numpy as np
import pandas as pd

from atlasvi.engine.model.covariates import Setup
from atlasvi.loaders.cells.cells_protocol import NamedColumns
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.tables.frames import join_names

SLICE_CELLS = 2**16  # rows of obs read at a time: one chunk of a store's arrays


class ObsRows:
    """obs of cells: whole columns, or the values of chosen cells. The latest slices are cached."""

    def __init__(self, table: NamedColumns) -> None:
        self.path, self.n_cells, self.obs_columns, self._table = table.path, table.n_cells, table.obs_columns, table
        self._kept: dict[str | None, tuple[int, pd.Series]] = {}  # column (None: names) -> start of the slice, values

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of cells [start, stop), or of all. Raises ColumnError, with the columns of obs."""
        return self._table.read_column(name, start, stop)

    def read_names(self, cells: np.ndarray | None = None) -> pd.Index:
        """Names of the cells with these indices, in any order; None: of all cells."""
        if cells is None:
            return self._table.read_names(0, self.n_cells)
        return pd.Index(self._take(None, cells))

    def take_column(self, name: str, cells: np.ndarray) -> pd.Series:
        """Values of one column [len(cells)] of the cells with these indices, in any order."""
        return self._take(name, cells)

    def find_named(self, names: Collection[str]) -> tuple[np.ndarray, pd.Index]:
        """The cells with one of these names, all cells of a name that repeats: (ascending int64 indices, names)."""
        rows, found, wanted = [np.empty(0, np.int64)], list[pd.Index](), list(names)
        for start in range(0, self.n_cells, SLICE_CELLS):
            here = self._table.read_names(start, min(start + SLICE_CELLS, self.n_cells))
            hits = np.flatnonzero(here.isin(wanted))
            rows.append(start + hits)
            found.append(here[hits])
        return np.concatenate(rows), join_names(found)

    def read_codes(self, setup: Setup, cells: np.ndarray, labels: bool = False) -> dict[str, np.ndarray]:
        """Covariates of the cells with these indices, as from `Setup.read_codes`, which also gives the errors."""
        try:
            return setup.read_codes(_ChosenCells(self, cells), labels)
        except ColumnError:
            setup.read_codes(self, labels)  # raises the same error with the index among all cells
            raise

    def _take(self, name: str | None, cells: np.ndarray) -> pd.Series:
        wanted, places = np.unique(cells, return_inverse=True)
        parts = [self._read_slice(name, start).iloc[here - start] for start, here in slice_cells(wanted, self.n_cells)]
        found = pd.concat(parts) if len(parts) > 1 else parts[0] if parts else self._read_slice(name, 0).iloc[:0]
        return found.iloc[places].reset_index(drop=True)

    def _read_slice(self, name: str | None, start: int) -> pd.Series:
        if name not in self._kept or self._kept[name][0] != start:
            stop = min(start + SLICE_CELLS, self.n_cells)
            if name is None:
                values = self._table.read_names(start, stop).to_series()
            else:
                values = self._table.read_column(name, start, stop)
            self._kept[name] = start, values
        return self._kept[name][1]


def slice_cells(cells: np.ndarray | None, n_cells: int, size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """(start, indices of the chosen cells in [start, start + size)) for each slice that contains chosen cells.

    cells  ascending int64; None: all n_cells are chosen
    size   number of cells in a slice; None: SLICE_CELLS
    """
    size = size or SLICE_CELLS
    if cells is None:
        for start in range(0, n_cells, size):
            yield start, np.arange(start, min(start + size, n_cells))
        return
    starts = np.unique(cells // size) * size
    for start, here in zip(starts.tolist(), np.split(cells, np.searchsorted(cells, starts[1:]))):
        yield start, here


class _ChosenCells:
    """Columns of the chosen cells only, with the interface that `Setup.read_codes` reads."""

    def __init__(self, rows: ObsRows, cells: np.ndarray) -> None:
        self._rows, self._cells, self.obs_columns = rows, cells, rows.obs_columns
        self.path, self.n_cells = rows.path, len(cells)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of these cells. Raises ColumnError, with the columns of obs."""
        return self._rows.take_column(name, self._cells[start:stop])
