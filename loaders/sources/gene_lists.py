"""Lists of genes and cells beside a matrix: text, tab- or comma-separated, with or without a header, quoted or not."""

import csv
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.sources.line_lists import Lines, open_text
from atlasvi.loaders.tables.anndata_tables import make_frame

GENES = "Gene Expression"
# What 10x writes as the type of a feature, in lower case; a column that holds none of them is something else.
FEATURE_TYPES = {
    "gene expression", "antibody capture", "crispr guide capture", "multiplexing capture", "custom", "peaks",
    "antigen capture", "vdj", "vdj-t", "vdj-b", "vdj-t-gd", "motifs",
}  # fmt: skip
# The first field of headers that R, pandas, kb, Parse and people write.
HEADERS = {
    "", "x", "v1", "0", "gene", "genes", "gene_id", "gene_ids", "geneid", "gene id", "gene_name", "gene_names",
    "symbol", "gene_symbol", "gene_short_name", "id", "ids", "index", "name", "names", "feature", "features",
    "feature_id", "ensembl", "ensembl_id", "ensembl_gene_id", "barcode", "barcodes", "cell", "cells", "cell_id",
    "cell_ids", "cell_name", "cellid", "bc_wells", "bc", "barcode_id", "cell_barcode",
}  # fmt: skip
NAMES_TOO = {"", "x", "v1", "0"}  # of these headers: what a gene or cell may be called


@dataclass(frozen=True)
class ListFile:
    """A list beside a matrix, one entry a line: its file, lines, the fields of the first, whether that is a header."""

    path: Path
    n_lines: int
    first: list[str]
    has_header: bool = False

    @property
    def n_entries(self) -> int:
        """Genes or cells in the list."""
        return self.n_lines - self.has_header

    @property
    def header(self) -> list[str]:
        """The names of the columns; none without a header."""
        return self.first if self.has_header else []


def open_list(file: Path, lines: Lines) -> ListFile:
    """The list in a file, taken to have no header."""
    return ListFile(file, len(lines), split_fields(file, lines.read(0, 1)[0]) if len(lines) else [""])


def find_headers(shape: tuple[int, int], genes: ListFile, cells: ListFile) -> tuple[ListFile, ListFile]:
    """The two lists, the first line of either taken for a header if it looks so.

    Where that may be a name as well, it is a header if only so the lists fit the matrix. One that can't be a name is a
    header even where they don't fit: a list that has lost a line must not get its header for a cell.
    """
    choices = [
        [replace(listed, has_header=header) for header in ((False, True) if word in NAMES_TOO else (word in HEADERS,))]
        for listed in (genes, cells)
        for word in [listed.first[0].strip().lower()]
    ]
    pairs = sorted(product(*choices), key=lambda pair: pair[0].has_header + pair[1].has_header)
    fitting = [pair for pair in pairs if sorted(listed.n_entries for listed in pair) == sorted(shape)]
    chosen = (fitting or pairs)[0]
    return chosen[0], chosen[1]


def split_fields(file: Path, line: str) -> list[str]:
    """The fields of a line: separated by commas in a .csv, else by tabs; quotes around a field are taken off."""
    separator = "," if ".csv" in file.name.lower() else "\t"
    if '"' in line:
        return next(csv.reader([line], delimiter=separator))
    return line.split(separator)


def read_genes(listed: ListFile) -> pd.DataFrame:
    """The genes of a list: index gene_ids, further columns gene_symbols and feature_types where it has them.

    Raises SourceError, naming the line, where a feature has no type and others do.
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
    return make_frame(frame, columns[0] if rows else [], "gene_ids")


def find_type_column(file: Path, columns: list[np.ndarray]) -> int | None:
    """Which column of a list of features is their type: by its values; in a features.tsv of three columns the third."""
    for k, column in enumerate(columns[1:], 1):
        if any(value is not None and value.lower() in FEATURE_TYPES for value in column):
            return k
    return 2 if len(columns) == 3 and "features" in file.name.lower() else None


class CellList:
    """Names of cells in a text file, and its further columns where a header names them; read by slices."""

    def __init__(self, listed: ListFile, lines: Lines) -> None:
        self._file, self._lines, self._first = listed.path, lines, int(listed.has_header)
        self._columns = [(k, name) for k, name in enumerate(listed.header) if k and name.strip()]

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop): index the names, columns of text."""
        lines = self._lines.read(start + self._first, stop + self._first)
        rows = [split_fields(self._file, line) for line in lines]
        columns = {
            name: np.array([row[k] if k < len(row) else None for row in rows], dtype=object)
            for k, name in self._columns
        }
        return make_frame(columns, [row[0] for row in rows], None)
