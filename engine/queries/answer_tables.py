"""Answers of all questions as tables: on the screen, or in a file whose name says its format.

    .csv, .tsv (either with .gz)  text that is safe in spreadsheets (see `text_answers`)
    .parquet                      for pandas, polars, DuckDB and R's arrow (see `array_answers`)
    .npz                          NumPy arrays (see `array_answers`)
    .h5ad, .zarr                  an AnnData (see `anndata_answers`)

All of them hold the same numbers. A file appears whole, at the end; memory is that of a slice.
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from atlasvi.engine.queries.answer_rows import Rows, Table
from atlasvi.engine.queries.question_cells import QueryError, QuestionCells, take_chosen
from atlasvi.engine.queries.text_answers import write_aligned, write_lines, write_text
from atlasvi.engine.terminal import make_printable
from atlasvi.loaders.outputs import write_file_aside, write_folder_aside

TEXT_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def write_table(
    slices: Iterable[tuple[pd.Index, np.ndarray] | Rows],
    columns: Sequence[str],
    out: Path | None,
    *,
    index: str = "cell",
    precision: int = 6,
) -> int:
    """Write slices of (cell names, values [cells, columns]) to a file, or to the screen; returns the number of rows.

    slices  with columns of obs beside the values, `Rows`, as from `put_beside`
    out     a file of one of the formats that this module's docstring lists; None: standard output, as CSV, or as
            aligned columns on a terminal
    index   what a row is, if it is not a cell: the name of the first column, and of the array of names in .npz
    In text, names that a spreadsheet would run as formulas are guarded (see `guard_formula`); other formats have them
    unchanged. Raises QueryError for another ending, OutputError if `out` exists or can't be written.
    """
    return write_answer(make_table(slices, columns, index), out, precision)


def make_table(slices: Iterable[tuple[pd.Index, np.ndarray] | Rows], columns: Sequence[str], index: str) -> Table:
    """The table that `write_table` writes."""
    rows = (each if isinstance(each, Rows) else Rows(each[0], _no_columns(len(each[0])), each[1]) for each in slices)
    return Table(index, list(map(str, columns)), rows)


def write_frame(table: pd.DataFrame, index: str, out: Path | None, *, precision: int = 6) -> int:
    """Write a table of numbers, truth values and text as `write_table` does; returns the number of rows.

    index  name of the column of row names; .npz holds them in an array of this name, and one array for each column.
           An AnnData holds the table as its obs.
    """
    return write_frames(iter([table]), index, out, precision=precision)


def write_frames(tables: Iterator[pd.DataFrame], index: str, out: Path | None, *, precision: int = 6) -> int:
    """The same for a table in slices of rows, with the same columns in each; memory is that of one slice."""
    return write_answer(make_frames_table(tables, index), out, precision)


def make_frames_table(tables: Iterator[pd.DataFrame], index: str) -> Table:
    """The table that `write_frames` writes."""
    rows = (Rows(table.index, table, np.empty((len(table), 0), np.float32)) for table in tables)
    return Table(index, [], rows)


def put_beside(
    slices: Iterator[tuple[pd.Index, np.ndarray]],
    cells: QuestionCells,
    chosen: np.ndarray | None,
    columns: Sequence[str],
    rows_per_cell: int = 1,
) -> Iterator[Rows]:
    """Slices of an answer about the chosen cells, in their order, with columns of obs beside the values.

    rows_per_cell  how many rows each cell has; all of them are in one slice

    Raises ColumnError, with the columns of obs, if one does not exist.
    """
    at = 0
    for names, values in slices:
        here = take_chosen(chosen, at, at + len(names) // rows_per_cell)
        at += len(here)
        here = np.repeat(here, rows_per_cell)
        yield Rows(names, pd.DataFrame({name: cells.take_column(name, here) for name in columns}), values)


def _no_columns(n_rows: int) -> pd.DataFrame:
    return pd.DataFrame(index=range(n_rows))


def write_answer(table: Table, out: Path | None, precision: int = 6) -> int:
    """Write a table as `write_table` does; returns the number of rows."""
    if out is None:
        screen = sys.stdout or io.StringIO()
        if screen.isatty():  # control characters are escaped; names go unchanged to a pipe or a file
            return write_aligned(screen, table, precision, make_printable)
        return write_lines(screen, ",", table, precision)
    if out.name.endswith(TEXT_ENDINGS):
        with write_file_aside(out) as temporary:
            return write_text(temporary, out.name, table, precision)
    writers: dict[str, Callable[[Path, Table], int]] = {}
    if out.suffix in (".npz", ".parquet"):
        from atlasvi.engine.queries.array_answers import write_npz, write_parquet

        writers = {".npz": write_npz, ".parquet": write_parquet}
    elif out.suffix in (".h5ad", ".zarr"):
        from atlasvi.engine.queries.anndata_answers import write_h5ad, write_zarr

        writers = {".h5ad": write_h5ad, ".zarr": write_zarr}
    if out.suffix not in writers:
        raise QueryError(
            f"{out}: use a file name that ends in .csv, .tsv (or either with .gz), .parquet, .npz, .h5ad or .zarr."
        )
    if out.suffix == ".zarr":
        with write_folder_aside(out) as scratch:
            return writers[out.suffix](scratch / "result", table)
    with write_file_aside(out) as temporary:
        return writers[out.suffix](temporary, table)
