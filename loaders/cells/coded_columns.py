"""Columns of obs as codes, read in slices of cells: a process holds one narrow code for each cell, nothing wider."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from atlasvi.loaders.cells.cells_protocol import Columns

SLICE_CELLS = 2**17  # rows of obs in memory at a time: whole chunks of a store, which have 2**16 rows


def slice_column(data: Columns, name: str) -> Iterator[tuple[int, pd.Series]]:
    """(first cell, values) of each slice of a column; one empty slice if there are no cells.

    Raises ColumnError, naming the columns that are there, if `name` is not one of them.
    """
    for start in range(0, max(data.n_cells, 1), SLICE_CELLS):
        yield start, data.read_column(name, start, min(start + SLICE_CELLS, data.n_cells))


@dataclass(frozen=True)
class CodedColumn:
    """A column of obs as categories.

    codes       int8, int16 or int32 [cells], the narrowest that holds them; -1 where a value is missing
    categories  what each code stands for
    """

    codes: np.ndarray
    categories: pd.Index

    def drop_unused(self) -> "CodedColumn":
        """The same column without the categories that no cell has."""
        used = count_codes(self.codes, len(self.categories)) > 0
        if used.all():
            return self
        table = np.append(np.where(used, np.cumsum(used) - 1, -1), -1)  # the last: missing values
        return CodedColumn(recode(self.codes, table, self.codes.dtype), self.categories[used])

    def find_missing(self) -> np.ndarray:
        """int64: indices of the cells whose value is missing."""
        return np.flatnonzero(self.codes < 0)


def code_column(data: Columns, name: str) -> CodedColumn:
    """A column of obs as codes of its categories, those of a categorical column or else its sorted values.

    Raises ColumnError, naming the columns that are there, if `name` is not one of them.
    """
    first = next(slice_column(data, name))
    dtype, is_whole = first[1].dtype, len(first[1]) == data.n_cells

    def read() -> Iterable[tuple[int, pd.Series]]:
        return [first] if is_whole else slice_column(data, name)

    if not isinstance(dtype, pd.CategoricalDtype):
        values = pd.concat([part.drop_duplicates() for _, part in read()], ignore_index=True)
        dtype = values.astype("category").dtype
    codes = np.empty(data.n_cells, pd.Categorical.from_codes([], dtype=dtype).codes.dtype)
    for start, part in read():
        codes[start : start + len(part)] = part.astype(dtype).cat.codes
    return CodedColumn(codes, dtype.categories)


def count_codes(codes: np.ndarray, n: int) -> np.ndarray:
    """int64 [n]: how many cells have each code from 0 to n - 1; -1 is not counted."""
    found = np.zeros(n, np.int64)
    for start in range(0, len(codes), SLICE_CELLS):
        part = codes[start : start + SLICE_CELLS]
        found += np.bincount(part[part >= 0], minlength=n)
    return found


def recode(codes: np.ndarray, table: np.ndarray, dtype: np.dtype, out: np.ndarray | None = None) -> np.ndarray:
    """`table[codes]` in a dtype, slice by slice; code -1 takes the last element of the table.

    out  where to write, [len(codes)]; None: a new array
    """
    out = np.empty(len(codes), dtype) if out is None else out
    for start in range(0, len(codes), SLICE_CELLS):
        out[start : start + SLICE_CELLS] = table[codes[start : start + SLICE_CELLS]]
    return out
