"""`obs` tables written in pieces: as records for the buckets on disk, then as AnnData's encoding in Zarr."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import ColumnError

TEXT = np.dtype(object)
INDEX = "_index"
CHUNK_ROWS = 2**16
MOST_CATEGORIES = 10_000  # text with more distinct values stays text


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Without zarr's and anndata's notes on young parts of the format, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        warnings.filterwarnings("ignore", message="The data type .* does not have a Zarr V3 specification")
        yield


def check_column(name: str, columns: Sequence[str], path: str) -> None:
    """Raises ColumnError, naming the columns that are there, if `name` is not one of them."""
    if name not in columns:
        there = ", ".join(columns) or "none"
        raise ColumnError(f"{path}: obs has no column {name!r} (it has: {there}).")


def obs_to_record(obs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns as arrays, categoricals as int32 codes (-1: missing), the index as `_index`, with `obs/` before names."""
    record = {f"obs/{INDEX}": np.asarray(obs.index, object)}
    for name, column in obs.items():
        if isinstance(column.dtype, pd.CategoricalDtype):
            record[f"obs/{name}"] = column.cat.codes.to_numpy(np.int32)
        else:
            record[f"obs/{name}"] = column.to_numpy()
    return record


class TextColumns:
    """Finds the text columns that have few distinct values, so that they can be written as categoricals."""

    def __init__(self, dtypes: Mapping[str, object]) -> None:
        self.values: dict[str, set[str | None]] = {name: set() for name, dtype in dtypes.items() if dtype == TEXT}
        self.crowded: set[str] = set()

    def see(self, record: Mapping[str, np.ndarray]) -> None:
        """Take note of the values in one record."""
        for name in self.values:
            if name not in self.crowded:
                self._add(name, record[f"obs/{name}"])

    def _add(self, name: str, values: Iterable[str | None]) -> None:
        self.values[name].update(values)
        if len(self.values[name]) > MOST_CATEGORIES:
            self._crowd(name)

    def _crowd(self, name: str) -> None:
        self.crowded.add(name)
        self.values[name].clear()

    def to_json(self) -> dict[str, list[str | None] | None]:
        """What was seen; None for a column of too many values."""
        return {name: None if name in self.crowded else list(values) for name, values in self.values.items()}

    def add_json(self, seen: Mapping[str, list[str | None] | None]) -> None:
        """Take note of what another one saw."""
        for name, values in seen.items():
            if values is None or name in self.crowded:
                self._crowd(name)
            else:
                self._add(name, values)

    def resolve(self, dtypes: Mapping[str, object], n_rows: int) -> dict[str, object]:
        """`dtypes` with CategoricalDtype where a text column repeats its values or misses some (as AnnData does)."""
        resolved = dict(dtypes)
        for name, values in self.values.items():
            if name not in self.crowded and (len(values) <= n_rows / 2 or None in values):
                resolved[name] = pd.CategoricalDtype(sorted(value for value in values if value is not None))
        return resolved


class TableReader:
    """Slices of a table that `TableWriter` wrote."""

    def __init__(self, group: zarr.Group, path: str) -> None:
        self._group = cast(Any, group)
        self._path = path
        self.columns: list[str] = list(self._group.attrs["column-order"])
        self._index = self._group[self._group.attrs["_index"]]
        self.n_rows: int = self._index.shape[0]

    def read(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop), all columns; the index holds cell names."""
        with reading(self._path):
            columns = {name: self._read_slice(name, start, stop) for name in self.columns}
            return pd.DataFrame(columns, index=self.read_names(start, stop))

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Cell names of rows [start, stop)."""
        with reading(self._path):
            return pd.Index(np.asarray(self._index[start:stop], object))

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of rows [start, stop), or of all. Raises ColumnError, naming those that are there."""
        check_column(name, self.columns, self._path)
        with reading(self._path):
            return pd.Series(self._read_slice(name, start, self.n_rows if stop is None else stop))

    def _read_slice(self, name: str, start: int, stop: int) -> Any:
        element = self._group[name]
        if isinstance(element, zarr.Group):  # TableWriter makes no other groups than categoricals
            parts = cast(Any, element)
            categories = np.asarray(parts["categories"][:])
            if categories.dtype.kind not in "iufb":
                categories = categories.astype(object)
            return pd.Categorical.from_codes(
                parts["codes"][start:stop], pd.Index(categories), ordered=bool(element.attrs["ordered"])
            )
        values = np.asarray(element[start:stop])
        return values if values.dtype.kind in "iufb" else values.astype(object)


class TableWriter:
    """Appends records of `obs` to a group in AnnData's dataframe encoding; memory is one chunk a column.

    Instead of appending, any process may `place_rows` in what this has made.
    """

    def __init__(
        self, root: zarr.Group, name: str, n_rows: int, dtypes: Mapping[str, object], chunk_rows: int = CHUNK_ROWS
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
        self.dtypes, self._chunk_rows = dict(dtypes), chunk_rows
        self._columns = {INDEX: AppendedArray(self.group, INDEX, n_rows, TEXT, chunk_rows=chunk_rows)}
        for column, dtype in dtypes.items():
            if isinstance(dtype, pd.CategoricalDtype):
                self._columns[column] = self._create_categorical(column, dtype, n_rows)
            else:
                kind = np.dtype(dtype)  # type: ignore[call-overload]
                self._columns[column] = AppendedArray(self.group, column, n_rows, kind, chunk_rows=chunk_rows)

    def _create_categorical(self, name: str, dtype: pd.CategoricalDtype, n_rows: int) -> "AppendedArray":
        group = self.group.create_group(
            name,
            attributes={"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": bool(dtype.ordered)},
        )
        categories = np.asarray(dtype.categories)
        if categories.dtype.kind not in "iufb":
            categories = categories.astype(object)
        AppendedArray(group, "categories", len(categories), categories.dtype).append(categories)
        codes = np.int8 if len(categories) < 2**7 else np.int16 if len(categories) < 2**15 else np.int32
        return AppendedArray(group, "codes", n_rows, np.dtype(codes), chunk_rows=self._chunk_rows)

    def append(self, record: Mapping[str, np.ndarray]) -> None:
        """Add the `obs/` columns of a record."""
        for name, writer in self._columns.items():
            values = record[f"obs/{name}"]
            dtype = self.dtypes.get(name)
            if isinstance(dtype, pd.CategoricalDtype) and values.dtype == TEXT:
                values = dtype.categories.get_indexer(pd.Index(values))
            writer.append(_without_missing_text(values))


def place_rows(group: zarr.Group, start: int, record: Mapping[str, np.ndarray]) -> None:
    """Write the `obs/` columns of a record at the rows from `start` on of a table that `TableWriter` made.

    Whole chunks, or processes would overwrite what others write. Categorical columns come as codes.
    """
    for name in [INDEX, *cast(Any, group.attrs["column-order"])]:
        values = _without_missing_text(record[f"obs/{name}"])
        element = group[name]
        array = cast(Any, element["codes"] if isinstance(element, zarr.Group) else element)
        array[start : start + len(values)] = values


def _without_missing_text(values: np.ndarray) -> np.ndarray:
    return np.where(values == None, "", values) if values.dtype == TEXT else values  # noqa: E711  elementwise


class AppendedArray:
    """An array of known length in a Zarr group, filled by appending rows; written in whole chunks of `chunk_rows`.

    Complete once `length` rows were appended. dtype object means text; `trailing` is the shape of one row.
    """

    def __init__(
        self,
        group: zarr.Group,
        name: str,
        length: int,
        dtype: np.dtype,
        trailing: tuple[int, ...] = (),
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        text, self._chunk_rows = dtype == TEXT, chunk_rows
        self.length, self._written, self._pending, self._waiting = length, 0, list[np.ndarray](), 0
        self._array = group.create_array(
            name,
            shape=(length, *trailing),
            chunks=(max(min(chunk_rows, length), 1), *trailing),
            dtype=str if text else dtype,
            compressors=[ZstdCodec(), Crc32cCodec()],  # any Zarr reader compares the checksum
            attributes={"encoding-type": "string-array" if text else "array", "encoding-version": "0.2.0"},
        )

    def append(self, rows: np.ndarray) -> None:
        """Add rows; whole chunks go to disk at once, the rest when `length` is reached."""
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
