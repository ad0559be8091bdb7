"""Tables as arrays: NumPy archives and Parquet."""

import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from atlasvi.engine.queries.answer_rows import Rows, Table, check_distinct, split_rows
from atlasvi.loaders.errors import MissingDependencyError

if TYPE_CHECKING:
    import pyarrow


def write_npz(file: Path, table: Table) -> int:
    """Write a table as `np.savez_compressed` writes all of it; returns the number of rows.

    Arrays: the names of rows (`cells`) and of columns (`columns`), the numbers (`values`), and an array `obs/NAME`
    for each column beside them. A table without numbers has its names under the name of the index (`gene`), and its
    columns.
    An array in a file begins with its shape and the width of its text: slices wait on disk until these are known.
    """
    with tempfile.TemporaryFile(dir=file.parent) as spool, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        n_rows, n_slices, beside = 0, 0, list[str]()
        dtypes: list[np.dtype] = [np.dtype("<U1"), np.dtype(np.float32)]
        width = len(table.columns)
        for rows in table.slices:
            beside, width = list(map(str, rows.beside.columns)), rows.values.shape[1]
            parts = [np.array([str(name) for name in rows.names], str), rows.values]
            parts += [_to_array(rows.beside[name]) for name in rows.beside]
            dtypes = (
                [np.result_type(dtypes[0], parts[0].dtype), *(part.dtype for part in parts[1:])]
                if n_slices == 0
                else [np.result_type(*both) for both in zip(dtypes, (part.dtype for part in parts))]
            )
            for part in parts:
                np.save(spool, part)
            n_rows, n_slices = n_rows + len(rows.names), n_slices + 1

        def write(name: str, dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for each in parts:
                    member.write(np.ascontiguousarray(each, dtype).tobytes())

        def read(which: int) -> Iterator[np.ndarray]:
            spool.seek(0)
            for _ in range(n_slices):
                yield [np.load(spool) for _ in dtypes][which]

        has_values = width > 0 or not beside
        write(f"{table.row}s" if has_values else table.row, dtypes[0], (n_rows,), read(0))
        if has_values:
            names_of_columns = np.array(table.columns, str)
            write("columns", names_of_columns.dtype, names_of_columns.shape, [names_of_columns])
            write("values", dtypes[1], (n_rows, width), read(1))
        for k, name in enumerate(beside):
            write(f"obs/{name}" if has_values else name, dtypes[k + 2], (n_rows,), read(k + 2))
    return n_rows


def _to_array(column: pd.Series) -> np.ndarray:
    """A column as numbers, truth values, or text, in which a missing value is ''; a missing number is NaN."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return column.to_numpy()
    if isinstance(column.dtype, pd.api.extensions.ExtensionDtype) and column.dtype.kind in "iuf":
        return column.to_numpy(np.float64, na_value=np.nan)
    return np.array(["" if missing else str(value) for value, missing in zip(column, column.isna())], str)


def write_parquet(file: Path, table: Table) -> int:
    """Write a table as Parquet, the names of rows as its first column; returns the number of rows.

    Raises MissingDependencyError without pyarrow.
    """
    _import_arrow()
    from pyarrow import parquet

    return _write_parts(table, lambda schema: parquet.ParquetWriter(file, schema))


def write_arrow(file: Any, table: Table) -> int:
    """Write a table as a stream of Arrow's IPC format, with the columns of Parquet; returns the number of rows.

    file  whose `write` takes bytes
    Raises MissingDependencyError without pyarrow.
    """
    arrow = _import_arrow()
    return _write_parts(table, lambda schema: arrow.ipc.new_stream(file, schema))


def _import_arrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingDependencyError("Parquet and Arrow need pyarrow: pip install 'atlasvi[parquet]'.") from None
    return pyarrow


def _write_parts(table: Table, open_writer: Callable[[Any], Any]) -> int:
    """Write a table part by part, all with the types of the first; returns the number of rows."""
    arrow, n_rows, writer, schema = _import_arrow(), 0, None, None
    empty = Rows(pd.Index([], dtype=object), pd.DataFrame(), np.empty((0, len(table.columns)), np.float32))
    try:
        for rows in split_rows(table.slices, len(table.columns)):
            part = _to_arrow(rows, table, arrow)
            if writer is None:
                schema = part.schema
                writer = open_writer(schema)
            writer.write_table(part.cast(schema))
            n_rows += len(rows.names)
        if writer is None:
            part = _to_arrow(empty, table, arrow)
            writer = open_writer(part.schema)
            writer.write_table(part)
    finally:
        if writer is not None:
            writer.close()
    return n_rows


def _to_arrow(rows: Rows, table: Table, pyarrow: Any) -> "pyarrow.Table":
    text = pyarrow.string()
    arrays = [pyarrow.array([str(name) for name in rows.names], text)]
    for name in rows.beside:
        column = rows.beside[name]
        if isinstance(column.dtype, pd.CategoricalDtype) or column.dtype == object:
            arrays.append(
                pyarrow.array([None if gap else str(value) for value, gap in zip(column, column.isna())], text)
            )
        else:
            arrays.append(pyarrow.Array.from_pandas(column))
    arrays += [pyarrow.array(rows.values[:, k]) for k in range(rows.values.shape[1])]
    names = [table.row, *map(str, rows.beside.columns), *table.columns]
    check_distinct(names, "Parquet")
    return pyarrow.table(arrays, names)
