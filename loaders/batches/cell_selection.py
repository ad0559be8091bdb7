"""Which cells an epoch visits, and how often: by an expression over `obs`, by weights, or with balanced classes."""

import numpy as np

from atlasvi.loaders.batches.cell_mask import CellMask
from atlasvi.loaders.batches.obs_expression import ObsExpression
from atlasvi.loaders.cells.cells_protocol import Cells, Columns
from atlasvi.loaders.cells.coded_columns import SLICE_CELLS, code_column, recode
from atlasvi.loaders.errors import ColumnError


def choose_cells(data: Columns, expression: str, may_be_none: bool = False) -> np.ndarray:
    """bool [data.n_cells]: where an expression over `obs` columns is true, in the syntax of `pandas.DataFrame.eval`.

    For example: "cell_type == 'B cell' and n_genes > 500", "donor in ['d1', 'd2']", "`cell type` != 'doublet'".
    may_be_none  whether it may be true for no cell
    Raises ColumnError if a column is missing, or the expression is invalid, is not true or false, or is never true.
    """
    parsed = ObsExpression(expression, data.obs_columns, data.path)
    chosen = np.empty(data.n_cells, bool)
    for start in range(0, data.n_cells, SLICE_CELLS):
        stop = min(start + SLICE_CELLS, data.n_cells)
        # column by column: a slice of a store's `obs` would read all columns
        holds = parsed.evaluate({name: data.read_column(name, start, stop) for name in parsed.columns})
        chosen[start:stop] = holds.fillna(False).to_numpy(bool)
    if not (may_be_none or chosen.any()):
        raise ColumnError(f"{data.path}: the expression {expression!r} is true for no cell.")
    return chosen


def balance_classes(data: Cells, column: str, cells: CellMask | None) -> np.ndarray:
    """float64 [data.n_cells]: weights that draw the classes of an `obs` column equally often.

    cells  cells that may be drawn; None: all. Raises ColumnError if one of them has no class.
    """
    classes = code_column(data, column)
    sizes = np.zeros(len(classes.categories) + 1, np.int64)  # the last: cells without a class
    parts = [(at, min(at + SLICE_CELLS, data.n_cells)) for at in range(0, data.n_cells, SLICE_CELLS)]
    for start, stop in parts:
        codes = classes.codes[start:stop].astype(np.int64)
        if cells is not None:
            codes = codes[cells.read(start, stop)]
        sizes += np.bincount(codes % len(sizes), minlength=len(sizes))
    if sizes[-1]:
        missing = classes.find_missing()
        if cells is not None:
            missing = missing[[bool(cells.read(cell, cell + 1)[0]) for cell in missing.tolist()]]
        raise ColumnError(
            f"{data.path}: obs column {column!r} has missing values (first: cell {int(missing[0]):,}), so not "
            "every cell has a class to balance: fill them in, or leave those cells out with an expression."
        )
    weights = recode(classes.codes, 1.0 / np.maximum(sizes, 1), np.dtype(np.float64))
    for start, stop in parts:
        if cells is not None:
            weights[start:stop][~cells.read(start, stop)] = 0.0
    return weights


class Draws:
    """How often each cell is visited when cells are drawn by weight; an epoch has as many visits as drawable cells.

    Systematic sampling (Madow 1949): each cell is drawn its expected number of times, rounded down or up at random.
    Rare cells are repeated, common ones take turns from epoch to epoch, and every epoch has the same length. Memory:
    float64 for each cell.
    """

    def __init__(self, weights: np.ndarray, cells: CellMask | None) -> None:
        """weights: float [cells]; cells: those that may be drawn, None: all."""
        self.n_cells = len(weights) if cells is None else cells.count()
        self._edges = np.zeros(len(weights) + 1)
        self._edges[1:] = weights
        for start in range(0, len(weights) if cells is not None else 0, SLICE_CELLS):
            stop = min(start + SLICE_CELLS, len(weights))
            self._edges[start + 1 : stop + 1][~cells.read(start, stop)] = 0.0  # type: ignore[union-attr]
        if not (np.isfinite(self._edges).all() and (self._edges >= 0).all() and self._edges.any()):
            raise ValueError("weights must be finite, not negative, and not all zero")
        np.cumsum(self._edges, out=self._edges)
        self._edges *= self.n_cells / self._edges[-1]
        self._edges[-1] = self.n_cells

    def count(self, start: int, stop: int, seed: int, epoch: int) -> np.ndarray:
        """int64 [stop - start]: how often each of these cells is visited in the epoch."""
        offset = np.random.default_rng([seed, epoch, 2]).random()
        return np.diff(np.floor(self._edges[start : stop + 1] + offset).astype(np.int64))
