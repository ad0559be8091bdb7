"""Answers as tables on the screen or in files: CSV and TSV that are safe in spreadsheets, or NumPy arrays."""

import gzip
import io
import itertools
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.terminal import make_printable
from atlasvi.loaders.outputs import write_file_aside

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
Rows = Iterator[tuple[object, Iterable[object]]]
"""The name of a row and its values: numbers, truth values, text."""


def write_table(
    slices: Iterator[tuple[pd.Index, np.ndarray]],
    columns: Sequence[str],
    out: Path | None,
    *,
    index: str = "cell",
    precision: int = 6,
) -> int:
    """Write slices of (cell names, values [cells, columns]) to a file, or to standard output as CSV; returns the number
    of rows.

    out    .csv or .tsv (.gz too), or .npz with `cells`, `columns`, `values`; memory is that of one slice
    index  what a row is, if it is not a cell: the name of the first column, and of the array of names in .npz
    In text, names that a spreadsheet would run as formulas are guarded (see `guard_formula`); .npz has them unchanged.
    Raises QueryError for another ending, OutputError if `out` exists or can't be written.
    """

    def write_arrays(file: Path) -> int:
        return _save_slices(file, slices, columns, f"{index}s")

    rows = ((name, row) for names, values in slices for name, row in zip(names, values.tolist()))
    return _write_answer(rows, [index, *columns], out, write_arrays, precision)


def write_frame(table: pd.DataFrame, index: str, out: Path | None, *, precision: int = 6) -> int:
    """Write a table of numbers, truth values and text as `write_table` does; returns the number of rows.

    index  name of the column of row names; .npz holds them in an array of this name, and one array for each column
    """
    return write_frames(iter([table]), index, out, precision=precision)


def write_frames(tables: Iterator[pd.DataFrame], index: str, out: Path | None, *, precision: int = 6) -> int:
    """The same for a table in slices of rows, of which there is at least one; in text, memory is that of one slice."""
    first = next(tables)

    def write_arrays(file: Path) -> int:
        table = pd.concat([first, *tables])
        arrays = {str(name): table[name].to_numpy() for name in table}
        text = {name: values.astype(str) for name, values in arrays.items() if values.dtype.kind not in "biuf"}
        _save_arrays(file, {index: table.index.to_numpy().astype(str), **arrays, **text})
        return len(table)

    rows = (
        row
        for table in itertools.chain([first], tables)
        for row in zip(table.index, zip(*(table[name].tolist() for name in table)))
    )
    return _write_answer(rows, [index, *map(str, first.columns)], out, write_arrays, precision)


def _save_slices(file: Path, slices: Iterator[tuple[pd.Index, np.ndarray]], columns: Sequence[str], names: str) -> int:
    """Write slices as `np.savez_compressed` writes all of them; returns the number of rows.

    An array in a file begins with its shape and the width of its text: slices wait on disk until these are known.
    """
    with tempfile.TemporaryFile(dir=file.parent) as spool, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        n_rows, n_slices, text, number, width = 0, 0, np.dtype("<U1"), np.dtype(np.float32), len(columns)
        for index, values in slices:
            part = np.array([str(name) for name in index], str)
            number = values.dtype if n_slices == 0 else np.result_type(number, values.dtype)
            text, width = np.result_type(text, part.dtype), values.shape[1]
            np.save(spool, part)
            np.save(spool, values)
            n_rows, n_slices = n_rows + len(part), n_slices + 1

        def write(name: str, dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for each in parts:
                    member.write(np.ascontiguousarray(each, dtype).tobytes())

        def read(which: int) -> Iterator[np.ndarray]:
            spool.seek(0)
            for _ in range(n_slices):
                yield [np.load(spool), np.load(spool)][which]

        names_of_columns = np.array(columns, str)
        write(names, text, (n_rows,), read(0))
        write("columns", names_of_columns.dtype, names_of_columns.shape, [names_of_columns])
        write("values", number, (n_rows, width), read(1))
    return n_rows


def _save_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(file, "wb") as archive:
        np.savez_compressed(archive, **arrays)  # type: ignore[arg-type]


def _write_answer(
    rows: Rows, header: Sequence[str], out: Path | None, write_arrays: Callable[[Path], int], precision: int
) -> int:
    if out is None:
        # names go unchanged to a pipe or a file; on a terminal, control characters are escaped
        show = make_printable if sys.stdout is not None and sys.stdout.isatty() else str
        return _write_lines(sys.stdout or io.StringIO(), ",", rows, header, precision, show)
    if not out.name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz", ".npz")):
        raise QueryError(f"{out}: use a file name that ends in .csv, .tsv (or either with .gz) or .npz.")
    with write_file_aside(out) as temporary:
        if out.suffix == ".npz":
            return write_arrays(temporary)
        delimiter = "\t" if out.name.endswith((".tsv", ".tsv.gz")) else ","
        with (gzip.open if out.suffix == ".gz" else open)(temporary, "wt", encoding="utf-8", newline="") as file:
            return _write_lines(file, delimiter, rows, header, precision, str)


def _write_lines(
    file: TextIO, delimiter: str, rows: Rows, header: Sequence[str], precision: int, show: Callable[[str], str]
) -> int:
    """Write the table, with `show` turning values into text; returns the number of rows."""

    def name(text: object) -> str:
        shown = guard_formula(show(str(text)))
        # csv.writer does not quote a carriage return before Python 3.13, and readers then begin a new row there
        quoted = any(special in shown for special in (delimiter, '"', "\r", "\n"))
        return '"' + shown.replace('"', '""') + '"' if quoted else shown

    def value(held: object) -> str:
        return name(held) if isinstance(held, str | bool) else f"{held:.{precision}g}"

    n, line = 0, delimiter.join(map(name, header)) + "\n"
    for row, values in rows:  # the first row raises any error before the header is written
        file.write(line)
        line = delimiter.join([name(row), *map(value, values)]) + "\n"
        n += 1
    file.write(line)
    return n


def guard_formula(text: str) -> str:
    """`text` for a cell of a CSV file, with an apostrophe in front if a spreadsheet would run it as a formula.

    Excel and LibreOffice treat text that starts with = + - @, a tab or a line break as a formula (also in full-width
    letters), and a formula can send other cells' content out; after an apostrophe it is text. Numbers stay unchanged.
    """
    if not text.startswith(FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
