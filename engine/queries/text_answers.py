"""Tables as text: CSV and TSV that are safe in spreadsheets, and aligned columns for a terminal."""

import gzip
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from atlasvi.engine.queries.answer_rows import Table

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
SCREEN_ROWS = 500  # that are aligned with each other


def write_text(file: Path, name: str, table: Table, precision: int) -> int:
    """Write a table as CSV or TSV, compressed if its name ends in .gz; returns the number of rows."""
    delimiter = "\t" if name.endswith((".tsv", ".tsv.gz")) else ","
    with (gzip.open if name.endswith(".gz") else open)(file, "wt", encoding="utf-8", newline="") as text:
        return write_lines(text, delimiter, table, precision)


def write_lines(file: TextIO, delimiter: str, table: Table, precision: int) -> int:
    """Write a table as lines of values between delimiters; returns the number of rows.

    Text is guarded (see `guard_formula`) and quoted where it must be. Numbers have `precision` significant digits,
    whole numbers all of theirs; missing values of text and whole numbers are empty, missing numbers are nan.
    """

    def name(text: str) -> str:
        shown = guard_formula(text)
        # csv.writer does not quote a carriage return before Python 3.13, and readers then begin a new row there
        quoted = any(special in shown for special in (delimiter, '"', "\r", "\n"))
        return '"' + shown.replace('"', '""') + '"' if quoted else shown

    n, line = -1, ""
    for cells, numbers in _list_rows(table, precision):  # the first row raises any error before the header is written
        file.write(line)
        line = delimiter.join([*(text if is_number else name(text) for text, is_number in cells), *numbers]) + "\n"
        n += 1
    file.write(line)
    return n


def write_aligned(file: TextIO, table: Table, precision: int, show: Callable[[str], str]) -> int:
    """Write a table for a person to read, its columns aligned; returns the number of rows.

    show  makes text safe for a terminal
    """
    rows = _list_rows(table, precision)
    header = [show(text) for text, _ in next(rows)[0]]
    widths, n_rows = [len(text) for text in header], 0
    while part := list(islice(rows, SCREEN_ROWS)):
        shown = [[*(show(text) for text, _ in cells), *numbers] for cells, numbers in part]
        to_right = [*(is_number for _, is_number in part[0][0]), *(True for _ in part[0][1])]
        widths = [max(width, *map(len, column)) for width, column in zip(widths, zip(*shown))]
        for row in shown if n_rows else [header, *shown]:
            aligned = (
                text.rjust(width) if right else text.ljust(width) for text, width, right in zip(row, widths, to_right)
            )
            file.write("  ".join(aligned).rstrip() + "\n")
        n_rows += len(part)
    if n_rows == 0:
        file.write("  ".join(header) + "\n")
    return n_rows


def _list_rows(table: Table, precision: int) -> Iterator[tuple[list[tuple[str, bool]], list[str]]]:
    """The header, then each row: its name and the columns beside, each with whether it is a number, and its numbers."""

    def format_cell(held: Any) -> tuple[str, bool]:
        if isinstance(held, float):
            return f"{held:.{precision}g}", True
        if held is None or held is pd.NA or held is pd.NaT:
            return "", False
        return str(held), isinstance(held, int) and not isinstance(held, bool)

    has_header = False
    for names, beside, values in table.slices:
        if not has_header:
            has_header = True
            yield [(text, False) for text in (table.row, *map(str, beside.columns), *table.columns)], []
        format_number = (lambda held: f"{held:.{precision}g}") if values.dtype.kind == "f" else str
        columns = [_to_list(beside[name]) for name in beside]
        for row, numbers, *cells in zip(names, values.tolist(), *columns):
            yield [(str(row), False), *map(format_cell, cells)], [format_number(held) for held in numbers]
    if not has_header:
        yield [(text, False) for text in (table.row, *table.columns)], []


def _to_list(column: pd.Series) -> list[Any]:
    """The values of a column, None where one is missing; a missing number of a column of floats is nan."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.tolist()
    return [None if missing else value for value, missing in zip(column, column.isna())]


def guard_formula(text: str) -> str:
    """`text` for a cell of a CSV file, with an apostrophe in front if a spreadsheet would run it as a formula.

    Excel and LibreOffice treat text that starts with = + - @, a tab or a line break as a formula (also in full-width
    letters), and a formula can send other cells' content out; after an apostrophe it is text, as OWASP
    advises (https://owasp.org/www-community/attacks/CSV_Injection). Numbers stay unchanged.
    """
    if not text.startswith(FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
