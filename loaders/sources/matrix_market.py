"""Matrix Market files (.mtx, .mtx.gz): the header, then the entries in any order, read in pieces of bounded size."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.sources.line_lists import open_bytes

# Bytes of text that are parsed at a time: some 700,000 entries.
PIECE_BYTES = 8 * 2**20

_VALUE_TYPES = {"integer": np.int64, "unsigned-integer": np.int64, "real": np.float64, "double": np.float64}


@dataclass(frozen=True)
class MatrixMarketHeader:
    """The header of a Matrix Market file."""

    n_rows: int
    n_cols: int
    n_entries: int
    value_dtype: np.dtype
    n_lines: int  # lines before the first entry


def find_mtx(folder: Place, named: bool = True) -> list[Place]:
    """The matrix files of a folder: `PREFIXmatrix.mtx(.gz)`, or any .mtx(.gz) if no name is like this.

    Of a plain file and its gzipped copy, only the plain one; no hidden files of macOS (._matrix.mtx). `named` False
    returns all, whatever their names are.
    """
    files = [file for file in sorted([*folder.glob("*.mtx"), *folder.glob("*.mtx.gz")]) if file.name[0] != "."]
    files = [file for file in files if not (file.suffix == ".gz" and file.with_suffix("") in files)]
    if not named:
        return files
    return [file for file in files if file.name.removesuffix(".gz").endswith("matrix.mtx")] or files


def read_header(path: str, file: Place) -> MatrixMarketHeader:
    """Read the header of `file`; `path` is its name in errors.

    Raises SourceError where it is not a sparse matrix of numbers.
    """
    with open_bytes(file) as lines:
        words = lines.readline(4096).decode("utf-8-sig", "replace").lower().split()
        if len(words) < 5 or words[0] != "%%matrixmarket":
            raise SourceError(f"{path}: its first line is not a Matrix Market header; it is no .mtx file, or damaged.")
        _, _, form, field, symmetry = words[:5]
        if form != "coordinate" or symmetry != "general" or field not in _VALUE_TYPES:
            raise SourceError(
                f"{path}: a Matrix Market file of kind '{form} {field} {symmetry}', where counts are "
                "'coordinate integer general' or 'coordinate real general'; write it again as one of these."
            )
        for n_lines, line in enumerate(lines, 2):
            text = line.strip()
            if text and not text.startswith(b"%"):
                numbers = text.split()
                if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
                    break
                n_rows, n_cols, n_entries = map(int, numbers)
                return MatrixMarketHeader(n_rows, n_cols, n_entries, np.dtype(_VALUE_TYPES[field]), n_lines)
    raise SourceError(f"{path}: the line with rows, columns and entries is missing: it is cut short; copy it again.")


def read_entries(
    path: str, file: Place, header: MatrixMarketHeader
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pieces of (rows, columns, values) in the order of the file, rows and columns counted from 0.

    Raises SourceError where an entry can't be read or is outside the matrix, or where there are more or fewer entries
    than the header says.
    """
    n_seen = 0
    for piece in _pieces(file, header.n_lines):
        try:
            entries = pd.read_csv(
                io.BytesIO(piece), sep=r"\s+", header=None, dtype={0: np.int64, 1: np.int64, 2: header.value_dtype}
            )
        except pd.errors.EmptyDataError:  # only blank lines
            continue
        except (pd.errors.ParserError, ValueError, OverflowError) as error:
            words = str(error).strip().rstrip(".")
            raise SourceError(
                f"{path}: after entry {n_seen} there is a line that is not 'row column count' of the announced type: "
                f"it is damaged or cut short; copy it again (the reader's message: {words})."
            ) from error
        if entries.shape[1] != 3:
            raise SourceError(f"{path}: entries have {entries.shape[1]} fields where 'row column count' has three.")
        rows, cols = entries[0].to_numpy() - 1, entries[1].to_numpy() - 1
        if rows.min() < 0 or cols.min() < 0 or rows.max() >= header.n_rows or cols.max() >= header.n_cols:
            raise SourceError(
                f"{path}: it has entries outside the {header.n_rows} x {header.n_cols} that its header says; "
                "it is damaged, copy it again."
            )
        n_seen += len(entries)
        yield rows, cols, entries[2].to_numpy()
    if n_seen != header.n_entries:
        raise SourceError(
            f"{path}: it has {n_seen} entries where its header says {header.n_entries}: "
            f"{'it is cut short' if n_seen < header.n_entries else 'it is damaged'}, copy it again."
        )


def _pieces(file: Place, n_header_lines: int) -> Iterator[bytes]:
    """Yield the text after the header in pieces of whole lines."""
    with open_bytes(file) as text:
        for _ in range(n_header_lines):
            text.readline()
        while piece := text.read(PIECE_BYTES):
            yield piece + text.readline()
