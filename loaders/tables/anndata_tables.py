"""`obs` and `var` of an AnnData file of any version (0.5 to 0.13), in HDF5 or Zarr, read by slices of rows.

How each version stores the table and its categories:

- 0.5, 0.6: one compound dataset, the first field is the index; categories of codes are in uns/<column>_categories
- 0.7: a group of arrays; an array's attribute `categories` points to its categories in the group `__categories`
- 0.8 on: a group; `categorical`, `nullable-integer`, `nullable-boolean`, `nullable-string-array` are groups in it
"""

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pandas as pd

from atlasvi.loaders.arrays.array_checks import Node, check_safe, is_array
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.tables.frames import make_frame, make_names, make_series
from atlasvi.loaders.tables.merged_columns import plain_values, to_index

ReadColumn = Callable[[int, int], Any]  # rows [start, stop) of a column, in a form that pandas accepts

# Codes of a file of anndata 0.5 or 0.6 read at a time, to test whether they fit the categories.
PIECE_ROWS = 2**16


def open_table(path: str, name: str, node: Node, uns: Node | None = None) -> "Table":
    """Open the table `node`, called `name` in errors; `uns` holds the categories in files of anndata 0.5 and 0.6.

    Raises SourceError where its format is not known.
    """
    if is_array(node):
        check_safe(f"{path}: {name}", node)
        if node.dtype.names is None:
            raise SourceError(
                f"{path}: {name} is not a table but an array of {node.dtype}; write the file again with anndata."
            )
        return RecordTable(node, uns)
    return ColumnTable(path, name, node)


def read_table(path: str, name: str, node: Node) -> pd.DataFrame:
    """All rows of a table, without anndata, whose import takes half a second; arguments and errors of `open_table`."""
    table = open_table(path, name, node)
    return table.read(0, table.n_rows)


class ColumnTable:
    """A table stored as a group with one array or group a column (anndata 0.7 on)."""

    def __init__(self, path: str, name: str, group: Node):
        attrs = group.attrs
        members = sorted(group)  # Zarr lists members in no fixed order
        index_key = to_str(attrs["_index"]) if "_index" in attrs else _first_in(("_index", "index"), members)
        if index_key is None or not _has_member(group, index_key):
            raise SourceError(f"{path}: {name} has no index; write the file again with anndata.")
        if "column-order" in attrs:
            columns = list(dict.fromkeys(to_str(column) for column in attrs["column-order"]))
        else:
            columns = [member for member in members if member not in (index_key, "__categories")]
        if missing := [column for column in columns if not _has_member(group, column)]:
            raise SourceError(f"{path}: column {missing[0]!r} of {name} is listed but not there; copy the file again.")
        self._index_name = None if index_key == "_index" else index_key
        self.columns = [column for column in columns if column != index_key]
        self._read_index = open_column(path, f"{name}/{index_key}", group[index_key], group)
        self._columns = {c: open_column(path, f"{name}/{c}", group[c], group) for c in self.columns}
        self.n_rows = column_length(group[index_key])
        for column in columns:
            if (length := column_length(group[column])) != self.n_rows:
                raise SourceError(
                    f"{path}: column {column!r} of {name} has {length} rows where the index has {self.n_rows}; "
                    "write the file again with anndata."
                )

    def read(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop): index of str, categoricals with all their categories, text as object."""
        names = self.read_names(start, stop)
        return make_frame({column: read(start, stop) for column, read in self._columns.items()}, names)

    def read_names(self, start: int, stop: int) -> pd.Index:
        """The index of rows [start, stop), str; no column is read."""
        return make_names(self._read_index(start, stop), self._index_name)

    def read_column(self, name: str, start: int, stop: int) -> pd.Series:
        """Rows [start, stop) of one column as in `read`, without the index; its own begins with 0."""
        return make_series(self._columns[name](start, stop))


class RecordTable:
    """A table stored as one compound dataset (anndata 0.5 and 0.6)."""

    def __init__(self, array: Node, uns: Node | None):
        self.n_rows = int(array.shape[0])
        self._array = array
        self._index_field, *self._fields = array.dtype.names
        self.columns = list(self._fields)
        self._categories: dict[str, pd.CategoricalDtype] = {}
        for field in self._fields:
            key = f"{field}_categories"
            if uns is not None and key in uns and is_array(uns[key]) and array.dtype[field].kind in "iu":
                dtype = pd.CategoricalDtype(to_index(np.atleast_1d(read_text(uns[key]))))
                # obs and var share uns: a column has these categories only if its codes fit them (as anndata decides)
                if self._fits(field, len(dtype.categories)):
                    self._categories[field] = dtype

    def _fits(self, field: str, n_categories: int) -> bool:
        pieces = (self._array[i : i + PIECE_ROWS][field] for i in range(0, self.n_rows, PIECE_ROWS))
        return all(codes.max() < n_categories for codes in pieces)

    def read(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop): index of str, categoricals with all their categories, text as object."""
        records = self._array[start:stop]
        columns: dict[str, Any] = {}
        for field in self._fields:
            if field in self._categories:
                columns[field] = pd.Categorical.from_codes(records[field], dtype=self._categories[field])
            else:
                columns[field] = to_plain(records[field])
        name = None if self._index_field == "index" else self._index_field
        return make_frame(columns, make_names(to_plain(records[self._index_field]), name))

    def read_names(self, start: int, stop: int) -> pd.Index:
        """The index of rows [start, stop), str; a record is stored as a whole."""
        return self.read(start, stop).index

    def read_column(self, name: str, start: int, stop: int) -> pd.Series:
        """Rows [start, stop) of one column as in `read`, without the index; its own begins with 0."""
        return self.read(start, stop)[name].reset_index(drop=True)


Table = ColumnTable | RecordTable
"""A table that is read by slices of rows."""


def open_column(path: str, name: str, node: Node, parent: Node) -> ReadColumn:
    """A function that reads rows [start, stop) of a column or index; small parts (categories) are read now.

    Raises SourceError for an unknown encoding: such a file is newer than this program.
    """
    encoding = to_str(node.attrs.get("encoding-type", ""))
    if is_array(node):
        if len(node.shape) != 1:
            raise SourceError(f"{path}: {name} has {len(node.shape)} dimensions where a column has one.")
        if "categories" not in node.attrs:
            return lambda start, stop: read_text(node, start, stop)
        pointer = node.attrs["categories"]
        categories = parent[pointer if isinstance(pointer, h5py.Reference) else to_str(pointer)]
        return _categorical(node, read_text(categories), bool(categories.attrs.get("ordered", False)))
    if encoding == "categorical":
        categories = node["categories"]
        values = open_column(path, f"{name}/categories", categories, node)(0, column_length(categories))
        return _categorical(node["codes"], values, bool(node.attrs.get("ordered", False)))
    if encoding in ("nullable-integer", "nullable-boolean", "nullable-string-array"):
        values, mask = node["values"], node["mask"]
        if len(values.shape) != 1 or values.shape != mask.shape:
            raise SourceError(
                f"{path}: {name} is damaged: its values have the shape {tuple(values.shape)} and its mask "
                f"{tuple(mask.shape)}; copy the file again, or drop the column with anndata."
            )
        return _masked(f"{path}: {name}", encoding, values, mask)
    raise SourceError(
        f"{path}: {name} is stored as {encoding or 'a group'!r}, which this version of atlasvi can't read; "
        "drop the column with anndata, or update atlasvi."
    )


def _categorical(codes: Node, categories: Any, ordered: bool) -> ReadColumn:
    dtype = pd.CategoricalDtype(to_index(plain_values(categories)), ordered=ordered)
    return lambda start, stop: pd.Categorical.from_codes(codes[start:stop], dtype=dtype)


def _masked(name: str, encoding: str, values: Node, mask: Node) -> ReadColumn:
    def read(start: int, stop: int) -> Any:
        part, missing = read_text(values, start, stop), np.asarray(mask[start:stop])
        truths = {"mask": missing, **({"values": part} if encoding == "nullable-boolean" else {})}
        for what, array in truths.items():
            if array.dtype.kind not in "biu":  # as bool, any text would be True
                raise SourceError(
                    f"{name} is damaged: its {what} should be true or false, and the file holds {array.dtype} there; "
                    "copy the file again, or drop the column with anndata."
                )
        missing = missing.astype(bool)
        if encoding == "nullable-integer":
            return pd.arrays.IntegerArray(part, missing)
        if encoding == "nullable-boolean":
            return pd.arrays.BooleanArray(part.astype(bool), missing)
        part[missing] = None
        return part

    return read


def column_length(node: Node) -> int:
    """Rows of a column, whatever its encoding."""
    if is_array(node):
        return int(node.shape[0])
    return int(node["codes" if "codes" in node else "mask"].shape[0])


def read_text(array: Node, start: int | None = None, stop: int | None = None) -> np.ndarray:
    """Entries [start, stop) of an array: text as object (str, None where missing), numbers in native byte order."""
    check_safe(str(array.name), array)
    if isinstance(array, h5py.Dataset):
        string = h5py.check_string_dtype(array.dtype)
        if string is not None and string.length is None:
            # A byte that is not UTF-8 (an old Latin-1 name) becomes a replacement character and does not stop the read.
            return to_plain(array.asstr(errors="replace")[start:stop] if array.shape else array.asstr()[()])
    return to_plain(array[start:stop] if array.shape else array[()])


def to_plain(values: Any) -> np.ndarray:
    """Text of any numpy or HDF5 type as object (str, None where missing); numbers in native byte order."""
    values = np.asarray(values)
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace").astype(object)
    if values.dtype.kind in "UT":
        return values.astype(object)
    if values.dtype.kind == "O":
        return np.array([_to_str_or_none(value) for value in values.flat], dtype=object).reshape(values.shape)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _to_str_or_none(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)


def to_str(value: Any) -> str:
    """An attribute's text, whether it was stored as str, bytes or an array of one."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _has_member(group: Node, name: str) -> bool:
    """Whether a group has this column; a name with slashes is a path from the group, never one from the root."""
    return not name.startswith("/") and name in group


def _first_in(names: tuple[str, ...], members: list[str]) -> str | None:
    return next((name for name in names if name in members), None)
