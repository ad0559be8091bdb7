"""Tables of cells or genes in AnnData's Zarr encoding: written record by record (see records.py), read by slices."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from atlasvi.loaders.arrays.row_arrays import Chosen, open_rows
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.places.object_path import ObjectPath, Place
from atlasvi.loaders.places.written_objects import lift_folder
from atlasvi.loaders.tables.column_names import INDEX, find_storable_names, set_reserved_aside
from atlasvi.loaders.tables.frames import make_frame, make_names, make_series
from atlasvi.loaders.tables.merged_columns import TEXT, convert_column, is_masked, join_dtypes, to_index
from atlasvi.loaders.tables.records import STRING, obs_to_record
from atlasvi.loaders.zarr_warnings import quiet_zarr

MASKED = {"b": "nullable-boolean", "i": "nullable-integer", "u": "nullable-integer", "O": "nullable-string-array"}
CHUNK_ROWS = 2**16


def check_column(name: str, columns: Sequence[str], path: str) -> None:
    """Raise ColumnError, naming the columns that are there and those of similar names, if `name` is not one of them."""
    if name not in columns:
        there = ", ".join(columns) or "none"
        raise ColumnError(f"{path}: obs has no column {name!r} (it has: {there}).{suggest_names(name, columns)}")


def find_near_names(name: str, there: Sequence[str], n: int = 3) -> list[str]:
    """At most n names that are nearest to a name that is not there, nearest first; case makes no difference."""
    by_lower: dict[str, list[str]] = {}
    for each in there:
        by_lower.setdefault(each.lower(), []).append(each)
    return [each for lower in get_close_matches(name.lower(), by_lower, n) for each in by_lower[lower]][:n]


def suggest_names(name: str, there: Sequence[str]) -> str:
    """A question that names what is nearest to a name that is not there, for the end of a message; '' if nothing is."""
    near = find_near_names(name, there)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


class TableReader:
    """Rows of a table that `TableWriter` wrote, by slices or by indices; a column is read without the others."""

    def __init__(self, group: zarr.Group, path: str) -> None:
        self._group = cast(Any, group)
        self._path = path
        self.columns: list[str] = list(self._group.attrs["column-order"])
        self._index = self._group[self._group.attrs["_index"]]
        self.n_rows: int = self._index.shape[0]
        self._opened: dict[str | None, Callable[[Chosen], Any]] = {}  # by column; None: the index

    def read(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop), all columns; the index holds cell names."""
        with reading(self._path):
            columns = {name: self._read(name, slice(start, stop)) for name in self.columns}
            return make_frame(columns, self.read_names(start, stop))

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Cell names of rows [start, stop)."""
        with reading(self._path):
            return pd.Index(self._read(None, slice(start, stop)), dtype=object)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of rows [start, stop), or of all. Raises ColumnError, naming those that are there."""
        check_column(name, self.columns, self._path)
        with reading(self._path):
            return make_series(self._read(name, slice(start, self.n_rows if stop is None else stop)))

    def take_names(self, rows: np.ndarray) -> pd.Index:
        """Cell names of the rows with these ascending int64 indices."""
        with reading(self._path):
            return pd.Index(self._read(None, rows), dtype=object)

    def take_column(self, name: str, rows: np.ndarray) -> pd.Series:
        """One column of the rows with these ascending int64 indices. Raises ColumnError, as `read_column`."""
        check_column(name, self.columns, self._path)
        with reading(self._path):
            return make_series(self._read(name, rows))

    def _read(self, name: str | None, rows: Chosen) -> Any:
        if name not in self._opened:
            self._opened[name] = _open_column(self._index if name is None else self._group[name])
        return self._opened[name](rows)


def _open_column(element: Any) -> Callable[[Chosen], Any]:
    """A function that reads rows of a column, in a form that pandas accepts; its categories are read now."""
    if not isinstance(element, zarr.Group):
        return open_rows(element).read
    parts = cast(Any, element)
    if "codes" in parts:
        categories = to_index(_to_objects(parts["categories"][:]))
        dtype = pd.CategoricalDtype(categories, ordered=bool(element.attrs["ordered"]))
        codes = open_rows(parts["codes"])
        return lambda rows: pd.Categorical.from_codes(codes.read(rows), dtype=dtype)
    values, mask = open_rows(parts["values"]), open_rows(parts["mask"])

    def read_masked(rows: Chosen) -> Any:
        found, missing = values.read(rows), mask.read(rows)
        if found.dtype == TEXT:
            found[missing] = None
            return found
        return (pd.arrays.BooleanArray if found.dtype == bool else pd.arrays.IntegerArray)(found, missing)

    return read_masked


def _to_objects(values: Any) -> np.ndarray:
    """Text as an object array; other arrays unchanged."""
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind in "UTO" else array


def read_arrays(group: zarr.Group) -> dict[str, Any]:
    """The arrays of a group by their names; those of a group in it are a dict of their own."""
    return {
        name: read_arrays(member) if isinstance(member, zarr.Group) else np.asarray(member[:])
        for name, member in group.members()
    }


class TableWriter:
    """Appends records of a table to a group in AnnData's dataframe encoding; memory: one chunk of each column.

    Instead, several processes may write its rows with `place_rows`.
    dtypes     of the columns; STRING is text with missing values
    text_rows  rows of the inner chunks of text, whose chunks of `chunk_rows` are then shards; None: no shards
    """

    def __init__(
        self,
        root: zarr.Group,
        name: str,
        n_rows: int,
        dtypes: Mapping[str, object],
        chunk_rows: int = CHUNK_ROWS,
        text_rows: int | None = None,
    ) -> None:
        self.group = root.create_group(
            name,
            attributes={
                "encoding-type": "dataframe",
                "encoding-version": "0.2.0",
                "_index": INDEX,
                "column-order": list(dtypes),
            },
        )
        self.dtypes, self._n_rows, self._chunk_rows, self._text_rows = dict(dtypes), n_rows, chunk_rows, text_rows
        self._arrays = {f"obs/{INDEX}": self._create(self.group, INDEX, TEXT)}
        for column, dtype in dtypes.items():
            self._arrays.update(self._create_column(column, dtype))

    def _create(self, group: zarr.Group, name: str, dtype: np.dtype) -> "AppendedArray":
        inner_rows = self._text_rows if dtype == TEXT else None
        return AppendedArray(group, name, self._n_rows, dtype, chunk_rows=self._chunk_rows, inner_rows=inner_rows)

    def _create_column(self, name: str, dtype: Any) -> dict[str, "AppendedArray"]:
        """The arrays of a column, by their names in records."""
        if isinstance(dtype, pd.CategoricalDtype):
            group = _create_group(self.group, name, "categorical", "0.2.0", ordered=bool(dtype.ordered))
            categories = _to_objects(dtype.categories.to_numpy())
            AppendedArray(group, "categories", len(categories), categories.dtype).append(categories)
            codes = np.int8 if len(categories) < 2**7 else np.int16 if len(categories) < 2**15 else np.int32
            return {f"obs/{name}": self._create(group, "codes", np.dtype(codes))}
        if dtype == STRING or is_masked(dtype):
            plain = TEXT if dtype == STRING else dtype.numpy_dtype
            group = _create_group(self.group, name, MASKED[plain.kind], "0.1.0")
            arrays = self._create(group, "values", plain), self._create(group, "mask", np.dtype(bool))
            return dict(zip((f"obs/{name}", f"mask/{name}"), arrays))
        create_parents(self.group, name)
        return {f"obs/{name}": self._create(self.group, name, np.dtype(dtype))}

    def append(self, record: Mapping[str, np.ndarray]) -> None:
        """Append the columns of a record."""
        for name, array in self._arrays.items():
            kind, _, column = name.partition("/")
            if kind == "mask" and self.dtypes[column] == STRING:
                array.append(_find_missing_text(record[f"obs/{column}"]))
                continue
            values = record[name]
            dtype = self.dtypes.get(column)
            if isinstance(dtype, pd.CategoricalDtype) and values.dtype == TEXT:
                values = dtype.categories.get_indexer(pd.Index(values, dtype=object))
            array.append(_fill_missing_text(values))


def write_table(root: zarr.Group, name: str, table: pd.DataFrame) -> None:
    """Write a whole table of any types. Raises ColumnError where two of its columns have one name."""
    plain = to_storable(table, name)
    dtypes: dict[str, object] = dict(plain.dtypes)
    for column, dtype in dtypes.items():
        if dtype == TEXT and plain[column].isna().any():
            dtypes[column] = STRING
    TableWriter(root, name, len(plain), dtypes).append(obs_to_record(plain))


def to_storable(table: pd.DataFrame, what: str, aside: bool = False) -> pd.DataFrame:
    """A table with the dtypes that `join_dtypes` gives, and names that a store can hold.

    what   name of the table in errors
    aside  rename columns called `source` or `source_row`, which ingest writes
    Raises ColumnError where two of its columns have one name.
    """
    names = [str(name) for name in table]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ColumnError(f"{what} has several columns called {repeated!r}: give them different names.")
    before = set_reserved_aside(names) if aside else {}
    names = [before.get(name, name) for name in names]
    storable = find_storable_names(names)
    renamed = table.set_axis([storable.get(name, name) for name in names], axis=1)
    columns = {name: convert_column(renamed, name, join_dtypes([renamed[name].dtype])) for name in renamed}
    return make_frame(columns, make_names(table.index))


def place_rows(group: zarr.Group, start: int, record: Mapping[str, np.ndarray]) -> None:
    """Write the columns of a record from row `start` on into a table that `TableWriter` made.

    Rows must be whole chunks, or processes would overwrite each other's. Categorical columns are given as codes.
    """
    for name in [INDEX, *cast(Any, group.attrs["column-order"])]:
        values, element = record[f"obs/{name}"], cast(Any, group[name])
        stop = start + len(values)
        if hasattr(element, "shape"):
            element[start:stop] = _fill_missing_text(values)
        elif "codes" in element:
            element["codes"][start:stop] = values
        else:
            mask = _find_missing_text(values) if values.dtype == TEXT else record[f"mask/{name}"]
            element["values"][start:stop], element["mask"][start:stop] = _fill_missing_text(values), mask


def has_masks(root: zarr.Group, tables: Sequence[str] = ("obs", "var")) -> bool:
    """Whether a column of these tables is stored with a mask, which the first versions of our formats lacked."""
    groups = (cast(Any, root[name]) for name in tables)
    columns = (group[name] for group in groups for name in group.attrs["column-order"])
    return any(column.attrs["encoding-type"] in MASKED.values() for column in columns)


def unmask_complete_text(group: zarr.Group, folder: Place) -> list[str]:
    """Turn text columns that were written with a mask into plain ones where no value is missing; returns their names.

    folder  of the group. Every anndata version reads plain text, and writes masked text only when it is set to.
    """
    turned = []
    for name in cast(Any, group.attrs["column-order"]):
        element = cast(Any, group[name])
        if element.attrs["encoding-type"] != MASKED["O"] or any(
            element["mask"][at : at + CHUNK_ROWS].any() for at in range(0, element["mask"].shape[0], CHUNK_ROWS)
        ):
            continue
        place = folder / name
        if isinstance(place, ObjectPath):
            lift_folder(place.address, "values", place.storage)
        else:
            aside = place.with_name(f".{os.getpid()}.values")
            os.rename(place / "values", aside)
            shutil.rmtree(place)
            os.rename(aside, place)
        turned.append(name)
    return turned


def consolidate_metadata(path: Place, group: zarr.Group | None = None) -> None:
    """Write the metadata of a finished store into its root, in an order that zarr-python reads correctly.

    group  the root of the store, as it was opened to write; a store in a bucket needs it

    zarr-python (up to 3.3.0) orders names without regard to case, and then misreads groups that differ by case alone.
    """
    with quiet_zarr():
        zarr.consolidate_metadata(str(path) if group is None else group.store)
    root = json.loads((path / "zarr.json").read_text())
    members = root["consolidated_metadata"]["metadata"]
    root["consolidated_metadata"]["metadata"] = dict(sorted(members.items(), key=lambda item: item[0].split("/")))
    write_whole(path / "zarr.json", json.dumps(root, indent=2).encode())


def _create_group(parent: zarr.Group, name: str, encoding: str, version: str, **more: Any) -> zarr.Group:
    create_parents(parent, name)
    return parent.create_group(name, attributes={"encoding-type": encoding, "encoding-version": version, **more})


def create_parents(group: zarr.Group, name: str) -> None:
    """Make the groups that lead to a column whose name holds slashes."""
    for segment in name.replace("\\", "/").split("/")[:-1]:
        group = group.require_group(segment)


def _find_missing_text(values: np.ndarray) -> np.ndarray:
    return np.array([value is None for value in values], bool)


def _fill_missing_text(values: np.ndarray) -> np.ndarray:
    """Text that can be stored: missing values become empty, and the mask marks them."""
    return np.where(_find_missing_text(values), "", values) if values.dtype == TEXT else values


class AppendedArray:
    """An array of known length in a Zarr group, filled by appending rows; written in whole chunks of `chunk_rows`.

    Complete once `length` rows are appended. dtype object means text; `trailing` is the shape of one row.
    inner_rows  split each chunk of `chunk_rows`, which is then a shard, into chunks of so many rows: a reader decodes
                only those that it needs. None, or a number that does not divide `chunk_rows`: no shards
    compressed  False: only the checksum is added, so that rows can be copied from a chunk without decoding it
    """

    def __init__(
        self,
        group: zarr.Group,
        name: str,
        length: int,
        dtype: np.dtype,
        trailing: tuple[int, ...] = (),
        chunk_rows: int = CHUNK_ROWS,
        inner_rows: int | None = None,
        compressed: bool = True,
    ) -> None:
        text, self._chunk_rows = dtype == TEXT, chunk_rows
        self.length, self._written, self._pending, self._waiting = length, 0, list[np.ndarray](), 0
        inner = inner_rows if inner_rows is not None and chunk_rows % inner_rows == 0 else None
        self._array = group.create_array(
            name,
            shape=(length, *trailing),
            chunks=(inner or max(min(chunk_rows, length), 1), *trailing),
            shards=(chunk_rows, *trailing) if inner else None,
            dtype=str if text else dtype,
            compressors=[*[ZstdCodec()] * compressed, Crc32cCodec()],  # any Zarr reader compares the checksum
            attributes={"encoding-type": "string-array" if text else "array", "encoding-version": "0.2.0"},
            config={"write_empty_chunks": True},  # so that a chunk of zeros is stored too, and a missing one is a loss
        )

    @property
    def n_appended(self) -> int:
        """Rows that were appended so far."""
        return self._written + self._waiting

    def append(self, rows: np.ndarray) -> None:
        """Append rows; whole chunks go to disk at once, the rest when `length` is reached."""
        self._pending.append(rows)
        self._waiting += len(rows)
        if self._waiting >= self._chunk_rows or self._written + self._waiting == self.length:
            values = np.concatenate(self._pending)
            done = len(values)
            if self._written + done < self.length:
                done -= done % self._chunk_rows
            self._array[self._written : self._written + done] = values[:done]
            self._written += done
            self._pending, self._waiting = [values[done:].copy()], len(values) - done
