"""Lists of genes and cells beside a matrix: text, tab- or comma-separated, with or without a header, quoted or not."""

import csv
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.sources.line_lists import Lines, open_text
from atlasvi.loaders.tables.frames import make_frame, make_names

GENES = "Gene Expression"
# Types of features that 10x writes, in lower case; a column with none of them is not the column of types.
FEATURE_TYPES = {
    "gene expression", "antibody capture", "crispr guide capture", "multiplexing capture", "custom", "peaks",
    "antigen capture", "vdj", "vdj-t", "vdj-b", "vdj-t-gd", "motifs",
}  # fmt: skip
# First fields of headers that R, pandas, kb, Parse and people write.
HEADERS = {
    "", "x", "v1", "0", "gene", "genes", "gene_id", "gene_ids", "geneid", "gene id", "gene_name", "gene_names",
    "symbol", "gene_symbol", "gene_short_name", "id", "ids", "index", "name", "names", "feature", "features",
    "feature_id", "ensembl", "ensembl_id", "ensembl_gene_id", "barcode", "barcodes", "cell", "cells", "cell_id",
    "cell_ids", "cell_name", "cellid", "bc_wells", "bc", "barcode_id", "cell_barcode",
}  # fmt: skip
AMBIGUOUS = {"", "x", "v1", "0"}  # headers that may also be the name of a gene or cell


@dataclass(frozen=True)
class ListFile:
    """A list beside a matrix, one entry a line: path, lines, fields of the first line, whether that is a header."""

    path: Place
    n_lines: int
    first: list[str]
    has_header: bool = False

    @property
    def n_entries(self) -> int:
        """Genes or cells in the list."""
        return self.n_lines - self.has_header

    @property
    def header(self) -> list[str]:
        """The names of the columns; empty without a header."""
        return self.first if self.has_header else []


def open_list(file: Place, lines: Lines) -> ListFile:
    """Open the list in a file, assuming that it has no header."""
    return ListFile(file, len(lines), split_fields(file, lines.read(0, 1)[0]) if len(lines) else [""])


def find_headers(shape: tuple[int, int], genes: ListFile, cells: ListFile) -> tuple[ListFile, ListFile]:
    """The two lists, where the first line of either is marked as a header if it looks like one.

    A line that may be a name too is a header only if the lists fit the matrix that way. A line that can't be a name is
    a header even if they do not fit: in a list that has lost a line, the header must not become a cell.
    """
    choices = [
        [replace(listed, has_header=header) for header in ((False, True) if word in AMBIGUOUS else (word in HEADERS,))]
        for listed in (genes, cells)
        for word in [listed.first[0].strip().lower()]
    ]
    pairs = sorted(product(*choices), key=lambda pair: pair[0].has_header + pair[1].has_header)
    fitting = [pair for pair in pairs if sorted(listed.n_entries for listed in pair) == sorted(shape)]
    chosen = (fitting or pairs)[0]
    return chosen[0], chosen[1]


def split_fields(file: Place, line: str) -> list[str]:
    """The fields of a line, separated by commas in a .csv, else by tabs; quotation marks are removed."""
    separator = "," if ".csv" in file.name.lower() else "\t"
    if '"' in line:
        return next(csv.reader([line], delimiter=separator))
    return line.split(separator)


def read_genes(listed: ListFile) -> pd.DataFrame:
    """The genes of a list: gene_ids as index, further columns gene_symbols and feature_types if the list has them.

    Raises SourceError, naming the line, where a feature has no type though others have one.
    """
    with open_text(listed.path) as text:
        rows = [split_fields(listed.path, line.rstrip("\r\n")) for line in text]
    while rows and not any(field.strip() for field in rows[-1]):
        rows.pop()
    rows = rows[listed.has_header :]
    width = max((len(row) for row in rows), default=1)
    columns = [np.array([row[k] if k < len(row) else None for row in rows], dtype=object) for k in range(width)]
    type_column = find_type_column(listed.path, columns)
    named = listed.header or ["gene_ids", "gene_symbols"]
    frame = {}
    for k in range(1, width):
        name = named[k] if k < len(named) and named[k].strip() else f"column_{k + 1}"
        frame["feature_types" if k == type_column else "gene_symbols" if k == 1 else name] = columns[k]
    if type_column is not None:
        short = [k for k, kind in enumerate(columns[type_column]) if not kind]
        if short:
            raise SourceError(
                f"{listed.path}: line {short[0] + 1 + listed.has_header} ({rows[short[0]][0]}) does not say "
                f"the type of its feature, as the others do: write it as field {type_column + 1} of that line "
                f"('{GENES}' for a gene)."
            )
    return make_frame(frame, make_names(columns[0] if rows else [], "gene_ids"))


def find_type_column(file: Place, columns: list[np.ndarray]) -> int | None:
    """Index of the column of types in a list of features: found by its values, or the third of a features.tsv."""
    for k, column in enumerate(columns[1:], 1):
        if any(value is not None and value.lower() in FEATURE_TYPES for value in column):
            return k
    return 2 if len(columns) == 3 and "features" in file.name.lower() else None


class CellList:
    """Names of cells in a text file, and its further columns if a header names them; read by slices."""

    def __init__(self, listed: ListFile, lines: Lines) -> None:
        self._file, self._lines, self._first = listed.path, lines, int(listed.has_header)
        self._columns = [(k, name) for k, name in enumerate(listed.header) if k and name.strip()]

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop): the names as index, columns of text."""
        lines = self._lines.read(start + self._first, stop + self._first)
        rows = [split_fields(self._file, line) for line in lines]
        columns = {
            name: np.array([row[k] if k < len(row) else None for row in rows], dtype=object)
            for k, name in self._columns
        }
        return make_frame(columns, make_names(row[0] for row in rows))
