"""Columns that are added to obs of a finished store: clusters, labels, quality measures.

The new columns are written to a scratch folder inside the store and moved to their places; then one step lists all of
them in the metadata. A kill leaves a store without them, or with all of them.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import zarr

from atlasvi.loaders.errors import ColumnError, OutputError, SourceError
from atlasvi.loaders.manifest import changing
from atlasvi.loaders.outputs import explain_full_disk, lock_folder, publish, write_whole
from atlasvi.loaders.places.object_path import need_local
from atlasvi.loaders.store_files import read_attributes
from atlasvi.loaders.tables.column_names import RESERVED, find_storable_names
from atlasvi.loaders.tables.frames import make_frame, make_series
from atlasvi.loaders.tables.merged_columns import convert_column, is_masked, join_dtypes
from atlasvi.loaders.tables.records import TextColumns, obs_to_record
from atlasvi.loaders.tables.store_tables import (
    TableReader,
    TableWriter,
    consolidate_metadata,
    create_parents,
    has_masks,
)

SCRATCH = ".added.unfinished"  # folder inside the store
SLICE_CELLS = 2**18
PROTECTED = (*RESERVED, "observed_lib_size")  # written by ingest and minify; queries rely on them
MASKED_VERSIONS = {"cell store": 3, "minified store": 2}  # the first formats that support columns with a mask


def add_obs_columns(
    store: str | Path, table: pd.DataFrame, *, partial: bool = False, replace: bool = False
) -> list[str]:
    """Add the columns of a table to obs of a finished cell store or minified store; returns their names.

    table    one row for each cell, in any order. Its index holds the cells' names; or, if names repeat, its columns
             `source` and `source_row` identify the cells, as obs has them.
             Text becomes categorical where values repeat, as in ingest
    partial  cells that are not in the table get missing values in the new columns, instead of an error
    replace  columns that obs has already are replaced, instead of an error
    A store that is already open shows the columns after it is opened again. `uns/atlasvi/library` is not extended.
    Raises SourceError if `store` is not a store, ColumnError where rows and cells do not match or a name can't be used,
    OutputError if the store can't be written.
    """
    path = need_local(store, "columns are added")
    attributes = read_attributes(path)
    if attributes is None or attributes.get("kind") not in MASKED_VERSIONS:
        raise SourceError(f"{path}: columns are added to a cell store or a minified store, and it is neither.")
    with _lock(path):
        root = cast(Any, zarr.open_group(path, mode="r+", use_consolidated=False))
        obs = TableReader(root["obs"], str(path))
        by_source = set(RESERVED) <= set(table)
        new = table.drop(columns=list(RESERVED)) if by_source else table
        new = new.set_axis([str(name) for name in new], axis=1)
        _check_columns(new, obs.columns, path, replace)
        rows = _match(table, by_source, obs, path, partial)
        columns = {name: _take(new, name, rows) for name in new}
        places = tuple(f"obs/{name}/" for name in columns)
        with changing(path, lambda name: name in ("zarr.json", "obs/zarr.json") or name.startswith(places)):
            _add(path, attributes, columns, obs, root["obs"])
    return list(columns)


def _add(path: Path, attributes: dict, columns: dict[str, pd.Series], obs: TableReader, group: zarr.Group) -> None:
    """Write columns, in the order of the store's cells, and list them in its metadata."""
    scratch = path / SCRATCH
    try:
        _write(scratch, columns, obs)
        if has_masks(zarr.open_group(scratch, mode="r"), ["obs"]):
            newest = max(attributes["format_version"], MASKED_VERSIONS[attributes["kind"]])
            _change_attributes(path, atlasvi={**attributes, "format_version": newest})
        _move(scratch / "obs", path / "obs", group, list(columns), obs.columns)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    consolidate_metadata(path)


def read_table(path: str | Path, key: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a .csv or .tsv file (or either with .gz) for `add_obs_columns`, numbers and missing values exactly.

    key      the column with the cells' names; None: the first, unless there are `source` and `source_row`
    columns  the columns to read; None: all others
    Raises SourceError if the file can't be read, ColumnError if a column is not there.
    """
    name = str(path).lower().removesuffix(".gz")
    if not name.endswith((".csv", ".tsv")):
        raise SourceError(f"{path}: the table must be a file whose name ends in .csv or .tsv (or either with .gz).")
    separator = "\t" if name.endswith(".tsv") else ","
    try:
        head = pd.read_csv(path, sep=separator, nrows=0, encoding="utf-8-sig")
        there = [str(column) for column in head]
        by_source = key is None and set(RESERVED) <= set(there)
        key = None if by_source else there[0] if key is None and there else key
        for wanted in [*([key] if key is not None else []), *(columns or [])]:
            if wanted not in there:
                raise ColumnError(f"{path}: the table has no column {wanted!r} (it has: {', '.join(there)}).")
        table = pd.read_csv(
            path,
            sep=separator,
            encoding="utf-8-sig",
            dtype=dict.fromkeys([RESERVED[0]] if key is None else [key], str),
            dtype_backend="numpy_nullable",
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ColumnError):
            raise
        raise SourceError(f"{path}: the table can't be read ({str(error).splitlines()[0].rstrip('.')}).") from error
    complete = {
        name: dtype.numpy_dtype
        for name, dtype in table.dtypes.items()
        if is_masked(dtype) and table[name].notna().all()
    }
    table = table.astype(complete)
    found = table if key is None else table.set_index(key)
    return found if columns is None else found[[*(RESERVED if key is None else ()), *columns]]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep a second process from adding to the same store, and remove what a killed process left.

    Raises OutputError where the store can't be written.
    """
    try:
        with lock_folder(path, "changing it: wait for it."), explain_full_disk(path):
            shutil.rmtree(path / SCRATCH, ignore_errors=True)
            yield
    except PermissionError as error:
        raise OutputError(f"{path}: no permission to write there: ask its owner, or copy the store.") from error


def _match(table: pd.DataFrame, by_source: bool, obs: TableReader, path: Path, partial: bool) -> np.ndarray:
    """int64 [cells]: the row of the table for each cell, -1 for cells without a row if `partial`."""
    if by_source:
        sources = obs.read_column("source", 0, 0).cat.categories
        keys = _join_keys(sources.get_indexer(pd.Index(table["source"].astype(str))), table["source_row"])
    else:
        keys = pd.Index(table.index.astype(str), dtype=object)

    def name_row(row: int) -> str:
        return f"{table['source'].iloc[row]!r}, row {table['source_row'].iloc[row]}" if by_source else repr(keys[row])

    if keys.has_duplicates:
        raise ColumnError(
            f"The table has two rows for a cell (first: {name_row(int(keys.duplicated().argmax()))}): keep one row."
        )
    rows, times = np.empty(obs.n_rows, np.int64), np.zeros(len(keys), np.int64)
    for start in range(0, obs.n_rows, SLICE_CELLS):
        stop = min(start + SLICE_CELLS, obs.n_rows)
        if by_source:
            codes = obs.read_column("source", start, stop).cat.codes.to_numpy()
            here = _join_keys(codes, obs.read_column("source_row", start, stop))
        else:
            here = obs.read_names(start, stop)
        rows[start:stop] = found = keys.get_indexer(here)
        times += np.bincount(found[found >= 0], minlength=len(keys))
    if (times > 1).any():
        raise ColumnError(
            f"{path}: {int((times > 1).sum()):,} names in the table belong to several cells (first: "
            f"{name_row(int((times > 1).argmax()))}): add the columns `source` and `source_row` of obs to "
            "the table."
        )
    if (times == 0).any():
        raise ColumnError(
            f"{path}: {int((times == 0).sum()):,} of {len(keys):,} rows of the table match no cell of it (first: "
            f"{name_row(int((times == 0).argmax()))}): leave them out, or name cells as the store does."
        )
    if not partial and (rows < 0).any():
        cell = int((rows < 0).argmax())
        raise ColumnError(
            f"{path}: {int((rows < 0).sum()):,} of {obs.n_rows:,} cells are not in the table (first: "
            f"{obs.read_names(cell, cell + 1)[0]!r}): add them, or let them be missing in the new columns (--partial, "
            "partial=True)."
        )
    return rows


def _join_keys(sources: np.ndarray, rows: pd.Series) -> pd.Index:
    """Source and row as one number; negative for values that are not a source or a row."""
    numbers = pd.to_numeric(rows, errors="coerce").fillna(-1).to_numpy(np.int64)
    unknown = (sources < 0) | (numbers < 0)
    return pd.Index(np.where(unknown, -1 - np.arange(len(rows)), sources.astype(np.int64) * 2**40 + numbers))


def _check_columns(new: pd.DataFrame, there: list[str], path: Path, replace: bool) -> None:
    names = list(new)
    if not names or not len(new):
        raise ColumnError(f"The table has no {'column to add' if not names else 'rows'}.")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ColumnError(f"The table has several columns called {repeated!r}: give them different names.")
    for name in names:
        if name in PROTECTED or (name in there and not replace):
            hint = "" if name in PROTECTED else ", or replace it (--replace, replace=True)"
            raise ColumnError(f"{path}: obs has a column {name!r} already: choose another name{hint}.")
    if unfit := find_storable_names([*there, *(name for name in names if name not in there)]):
        raise ColumnError(
            f"{path}: a store can't hold a column called {next(iter(unfit))[:60]!r} beside the others: "
            "choose another name."
        )


def _take(new: pd.DataFrame, name: str, rows: np.ndarray) -> Any:
    """The values of one new column in the order of the store's cells."""
    gaps = rows < 0
    dtype = join_dtypes([new[name].dtype, *([None] * bool(gaps.any()))])
    values = make_series(convert_column(new, name, dtype)).take(np.maximum(rows, 0)).reset_index(drop=True)
    if gaps.any():
        values[gaps] = None
    return values


def _write(scratch: Path, columns: dict[str, pd.Series], obs: TableReader) -> None:
    """Write the new columns as a separate table, in the order of the store's cells."""
    table = make_frame(columns, pd.RangeIndex(obs.n_rows))
    record, dtypes = obs_to_record(table.set_axis(np.full(obs.n_rows, ""), axis=0)), dict(table.dtypes)
    text = TextColumns(dtypes)
    text.see(record)
    root = zarr.open_group(scratch, mode="w", zarr_format=3)
    TableWriter(root, "obs", obs.n_rows, text.resolve(dtypes, obs.n_rows)).append(record)


def _move(scratch: Path, folder: Path, group: zarr.Group, names: list[str], there: list[str]) -> None:
    """Move the written columns into obs, and list them."""
    if replaced := set(names) & set(there):  # until they are listed again, the store is valid without them
        _announce(folder, [name for name in there if name not in replaced])
    for name in names:
        create_parents(group, name)
        place = folder.joinpath(*Path(name).parts)
        shutil.rmtree(place, ignore_errors=True)  # the old column, or one that a killed process left
        publish(scratch.joinpath(*Path(name).parts), place)
    _announce(folder, [*there, *(name for name in names if name not in there)])


def _announce(folder: Path, columns: list[str]) -> None:
    """Write the list of obs columns."""
    _change_attributes(folder, **{"column-order": columns})


def _change_attributes(folder: Path, **values: Any) -> None:
    """Change attributes of a Zarr group in one step."""
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["attributes"].update(values)
    write_whole(folder / "zarr.json", json.dumps(metadata, indent=2).encode())
