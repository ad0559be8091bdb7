"""Minified cells as one h5ad file, which scvi-tools opens as its own; obs and latents are read and written by slices.

What the file will hold is found first (`plan_h5ad`), with its size, so that a caller can choose fewer cells.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import (
    BEFORE_1_2,
    EMBEDDING,
    LATENTS,
    LIBRARY,
    MINIFIED,
    MINIFY_TYPE,
    KeptPosterior,
)
from atlasvi.engine.minified.minified_store import MinifiedStore, open_root
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import AtlasviError, OutputError
from atlasvi.loaders.outputs import write_file_aside
from atlasvi.loaders.tables.column_names import INDEX
from atlasvi.loaders.tables.frames import make_frame, make_names
from atlasvi.loaders.tables.merged_columns import TEXT, convert_column, is_masked, join_dtypes
from atlasvi.loaders.tables.records import STRING, TextColumns, obs_to_record
from atlasvi.loaders.tables.store_tables import MASKED

SLICE_CELLS = 2**16  # cells in memory at a time
TEXT_BYTES = 32  # of a text in HDF5, beside its own bytes, which are filled up to a multiple of 8
PAGE_BYTES = 2**16
OBJECT_BYTES = 2**10  # of an array's or group's description in HDF5, about


@dataclass(frozen=True)
class H5adPlan:
    """What an h5ad file of minified cells will hold.

    cells           the cells
    dtypes          of the columns of obs, as they are stored; text with few distinct values is categorical
    bytes_per_cell  of obs, the latents, and the coordinates if there are any
    other_bytes     of what does not grow with the number of cells
    """

    cells: KeptPosterior
    dtypes: Mapping[str, Any]
    bytes_per_cell: float
    other_bytes: int

    def estimate_bytes(self, n_cells: int) -> int:
        """Size of a file of so many of the cells."""
        return round(n_cells * self.bytes_per_cell) + self.other_bytes


def write_minified_h5ad(store: "MinifiedStore | str | Path", path: str | Path) -> None:
    """Write a minified store as one new h5ad file, which scvi-tools opens as its own. Memory: a slice of the cells.

    Dates become text, because HDF5 has no type for them.
    Raises SourceError if `store` is no minified store, OutputError if `path` exists or can't be written.
    """
    cells = store if isinstance(store, MinifiedStore) else MinifiedStore(store)
    cells.model()  # a store whose model is damaged is not exported
    with reading(cells.path):
        layers = sorted(open_root(cells.path)["layers"])
    with write_file_aside(path) as temporary:
        write_h5ad(plan_h5ad(cells), temporary, layers=layers)


def plan_h5ad(cells: KeptPosterior) -> H5adPlan:
    """Read obs once, slice by slice, to find how its columns are stored and how large the file will be."""
    dtypes: dict[str, Any] = {}
    text, text_bytes = TextColumns({}), dict[str, int]()
    for obs in (part for _, part in _read_obs(cells)):
        if not dtypes:
            dtypes = {str(name): join_dtypes([obs[name].dtype]) for name in obs}
            text = TextColumns(dtypes)
        record = _make_record(obs, dtypes)
        text.see(record)
        for name in (INDEX, *text.values):
            text_bytes[name] = text_bytes.get(name, 0) + _count_bytes(record[f"obs/{name}"])
    stored = text.resolve(dtypes, cells.n_cells)
    as_text = [INDEX, *(name for name, dtype in stored.items() if dtype in (TEXT, STRING))]
    of_text = sum(text_bytes.get(name, 0) for name in as_text) / max(cells.n_cells, 1)
    fixed = 8 * cells.n_latent + 8 * cells.has_embedding + sum(map(_itemsize, stored.values()))
    others = int(cells.var.memory_usage(deep=True).sum()) + sum(map(_category_bytes, stored.values()))
    return H5adPlan(cells, stored, fixed + of_text, others + OBJECT_BYTES * (len(stored) + len(cells.var.columns) + 20))


def write_h5ad(
    plan: H5adPlan,
    path: Path,
    rows: np.ndarray | None = None,
    layers: list[str] | tuple[str, ...] = (),
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write the cells of a plan to a new file at `path`.

    rows    ascending indices of the cells to write; None: all
    layers  layers that hold a matrix without counts, beside X: scvi-tools needs the one that held the counts
    uns     further plain values for uns
    Raises OutputError if this version of anndata or HDF5 can't write a column, OSError on a full disk.
    """
    from anndata.io import write_elem

    cells, n_cells = plan.cells, plan.cells.n_cells if rows is None else len(rows)
    with _writing_hdf5(path, cells.path) as (file, content):
        _mark(file, "anndata", "0.1.0")
        _create_empty_matrix(file, "X", n_cells, len(cells.genes))
        for name in ("layers", "obsm"):
            _mark(file.create_group(name), "dict", "0.1.0")
        for name in layers:
            _create_empty_matrix(file["layers"], name, n_cells, len(cells.genes))
        write_elem(file, "var", _storable_var(cells.var))
        write_elem(file, "uns", {MINIFIED: MINIFY_TYPE, **(uns or {})})
        for name in ("obsp", "varm", "varp"):
            write_elem(file, name, {})
        latents = [_create(file["obsm"], name, (n_cells, cells.n_latent), np.float32) for name in LATENTS]
        embedding = _create(file["obsm"], EMBEDDING, (n_cells, 2), np.float32) if cells.has_embedding else None
        obs, at = _ObsWriter(file, n_cells, plan.dtypes), 0
        for chosen, part in _read_obs(cells, rows):
            content.check()
            first, stop = at, at + len(part)
            obs.write(first, _make_record(part, plan.dtypes))
            if len(part):
                low, high = int(chosen[0]), int(chosen[-1]) + 1
                for array, values in zip(latents, cells.read_latent(low, high)):
                    array[first:stop] = values[chosen - low]
                if embedding is not None:
                    embedding[first:stop] = cells.read_embedding(chosen)
            at = stop


@contextmanager
def _writing_hdf5(path: Path, source: str) -> Iterator[tuple[h5py.File, "_SteadyFile"]]:
    """A new HDF5 file. Raises OSError on a full disk, OutputError for a type that anndata or HDF5 can't write."""
    import anndata

    with _SteadyFile(path, "w+") as content, anndata.settings.override(allow_write_nullable_strings=True):
        try:
            with h5py.File(content, "w") as file:
                yield file, content
        except Exception as error:
            content.check()  # what the disk said explains what HDF5 says after it
            if isinstance(error, (ValueError, TypeError)) and not isinstance(error, AtlasviError):
                reason = str(error).splitlines()[0].rstrip(".")
                raise OutputError(
                    f"{path}: the columns of {source} can't be written as one h5ad file ({reason}): use the store."
                ) from error
            raise
        content.check()


class _SteadyFile(io.FileIO):
    """A file that keeps the first error of writing, and in memory what it could not write from then on.

    HDF5 prints a page of errors and ends the process, or reads what is not there, if it is told that a disk is full; so
    it is not told, and whoever writes calls `check` from time to time, which raises the error.
    """

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.error: OSError | None = None
        self._pages: dict[int, bytearray] = {}  # by their number in the file

    def check(self) -> None:
        """Raise the first error of writing, if there was one."""
        if self.error is not None:
            raise self.error

    def write(self, content: Any) -> int:
        """Write all of the bytes, or keep the error and the bytes."""
        left, start = memoryview(content).cast("B"), self.tell()
        stop = start + len(left)
        try:
            while self.error is None and len(left):
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
        for number, in_page, in_left in _split_pages(stop - len(left), len(left)):
            if number not in self._pages:
                self.seek(number * PAGE_BYTES)
                self._pages[number] = bytearray(self.read(PAGE_BYTES).ljust(PAGE_BYTES, b"\0"))
            self._pages[number][in_page] = left[in_left]
        self.seek(stop)
        return stop - start

    def readinto(self, buffer: Any) -> int:
        """Read from the file, and from what could not be written to it."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        n_read = super().readinto(view) or 0
        if self.error is None:
            return n_read
        view[n_read:] = bytes(len(view) - n_read)
        for number, in_page, in_view in _split_pages(start, len(view)):
            if number in self._pages:
                view[in_view] = self._pages[number][in_page]
        self.seek(start + len(view))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def _split_pages(start: int, length: int) -> Iterator[tuple[int, slice, slice]]:
    """(number of a page, the bytes in it, the same bytes counted from `start`) of the bytes [start, start + length)."""
    at, stop = start, start + length
    while at < stop:
        number, first = divmod(at, PAGE_BYTES)
        n = min(PAGE_BYTES - first, stop - at)
        yield number, slice(first, first + n), slice(at - start, at - start + n)
        at += n


class _ObsWriter:
    """Writes records of obs (see `loaders.tables.records`) into a group of an h5ad file, in AnnData's encoding."""

    def __init__(self, file: h5py.File, n_rows: int, dtypes: Mapping[str, Any]) -> None:
        self._group, self._n_rows, self._dtypes = file.create_group("obs"), n_rows, dtypes
        _mark(self._group, "dataframe", "0.2.0")
        self._group.attrs["_index"] = INDEX
        self._group.attrs["column-order"] = np.array(list(dtypes), h5py.string_dtype())
        self._arrays = {f"obs/{INDEX}": self._create(self._group, INDEX, TEXT)}
        for name, dtype in dtypes.items():
            self._arrays.update(self._create_column(name, dtype))

    def _create(self, group: h5py.Group, name: str, dtype: Any) -> h5py.Dataset:
        return _create(group, name, (self._n_rows,), dtype)

    def _create_column(self, name: str, dtype: Any) -> dict[str, h5py.Dataset]:
        """The arrays of a column, by their names in records."""
        from anndata.io import write_elem

        if isinstance(dtype, pd.CategoricalDtype):
            group = self._group.create_group(name)
            _mark(group, "categorical", "0.2.0")
            group.attrs["ordered"] = bool(dtype.ordered)
            write_elem(group, "categories", dtype.categories.to_numpy())
            return {f"obs/{name}": self._create(group, "codes", _code_dtype(dtype))}
        if dtype == STRING or is_masked(dtype):
            plain = TEXT if dtype == STRING else dtype.numpy_dtype
            group = self._group.create_group(name)
            _mark(group, MASKED[plain.kind], "0.1.0")
            return {
                f"obs/{name}": self._create(group, "values", plain),
                f"mask/{name}": self._create(group, "mask", np.dtype(bool)),
            }
        return {f"obs/{name}": self._create(self._group, name, dtype)}

    def write(self, start: int, record: Mapping[str, np.ndarray]) -> None:
        """Write the rows of a record, from row `start` on."""
        for name, array in self._arrays.items():
            kind, _, column = name.partition("/")
            values, dtype = record[f"obs/{column}"], self._dtypes.get(column)
            if kind == "mask":
                values = np.array([value is None for value in values], bool) if dtype == STRING else record[name]
            elif values.dtype == TEXT and isinstance(dtype, pd.CategoricalDtype):
                values = dtype.categories.get_indexer(pd.Index(values, dtype=object))
            elif values.dtype == TEXT:
                values = np.array([*("" if value is None else value for value in values), None], object)[:-1]
            array[start : start + len(values)] = values


def _read_obs(cells: KeptPosterior, rows: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """(indices of cells, their obs with today's name of the library), slice by slice; one empty slice of no cells."""
    names = {name: LIBRARY if name == BEFORE_1_2[LIBRARY] else name for name in cells.obs_columns}
    for start in range(0, max(cells.n_cells, 1), SLICE_CELLS):
        stop = min(start + SLICE_CELLS, cells.n_cells)
        chosen = np.arange(start, stop)
        if rows is not None:
            chosen = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        with reading(cells.path):
            columns = {
                names[name]: _dates_as_text(cells.read_column(name, start, stop)).array[chosen - start]
                for name in cells.obs_columns
            }
            yield chosen, make_frame(columns, cells.read_names(start, stop)[chosen - start])


def _make_record(obs: pd.DataFrame, dtypes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The columns as plain arrays; text stays text where it will be stored as categories or with a mask."""
    plain = {
        name: convert_column(obs, name, TEXT if _is_text(obs[name].dtype) else dtype) for name, dtype in dtypes.items()
    }
    return obs_to_record(make_frame(plain, make_names(obs.index)))


def _is_text(dtype: Any) -> bool:
    return not isinstance(dtype, pd.CategoricalDtype) and join_dtypes([dtype]) == TEXT


def _dates_as_text(column: pd.Series) -> pd.Series:
    """A column of dates or times, also as categories, as text; any other column as it is."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        if column.dtype.categories.dtype.kind not in "mM":
            return column
        return column.cat.rename_categories(column.dtype.categories.astype(object).map(str))
    return column.astype(object).map(str, na_action="ignore") if column.dtype.kind in "mM" else column


def _text_as_objects(column: pd.Series) -> pd.Series:
    """Text of pandas' own type as `object`, which anndata writes in a form that all its versions read."""
    is_text = isinstance(column.dtype, pd.StringDtype)
    return column.astype(object).where(column.notna(), None) if is_text else column


def _storable_var(var: pd.DataFrame) -> pd.DataFrame:
    """var with dates as text, and repeated text as categories, as anndata's own `write_h5ad` has it."""
    import anndata

    columns = {str(name): _text_as_objects(_dates_as_text(column)) for name, column in var.items()}
    table = anndata.AnnData(var=make_frame(columns, make_names(var.index)))
    table.strings_to_categoricals()
    return table.var


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """An array, or text if `dtype` is object."""
    is_text = dtype == TEXT
    array = group.create_dataset(name, shape=shape, dtype=h5py.string_dtype() if is_text else dtype)
    _mark(array, "string-array" if is_text else "array", "0.2.0")
    return array


def _create_empty_matrix(group: h5py.Group, name: str, n_cells: int, n_genes: int) -> None:
    """A CSR matrix of the right shape without counts; its row pointers are zeros, which take little space."""
    matrix = group.create_group(name)
    _mark(matrix, "csr_matrix", "0.1.0")
    matrix.attrs["shape"] = np.array([n_cells, n_genes])
    _create(matrix, "data", (0,), np.float32)
    _create(matrix, "indices", (0,), np.int32)
    chunks = (min(n_cells + 1, SLICE_CELLS),)
    indptr = matrix.create_dataset("indptr", (n_cells + 1,), np.int64, chunks=chunks, compression="gzip")
    _mark(indptr, "array", "0.2.0")
    for start in range(0, n_cells + 1, SLICE_CELLS):  # chunks that are not written would be taken for lost ones
        indptr[start : start + SLICE_CELLS] = 0


def _mark(node: h5py.Group | h5py.Dataset, encoding: str, version: str) -> None:
    node.attrs.update({"encoding-type": encoding, "encoding-version": version})


def _code_dtype(dtype: pd.CategoricalDtype) -> np.dtype:
    return np.dtype(next(kind for kind in (np.int8, np.int16, np.int32) if len(dtype.categories) <= np.iinfo(kind).max))


def _itemsize(dtype: Any) -> int:
    """Bytes of a value in the file; of text, only the mask if it has one."""
    if isinstance(dtype, pd.CategoricalDtype):
        return _code_dtype(dtype).itemsize
    if dtype == STRING:
        return 1
    return dtype.numpy_dtype.itemsize + 1 if is_masked(dtype) else 0 if dtype == TEXT else np.dtype(dtype).itemsize


def _category_bytes(dtype: Any) -> int:
    return _count_bytes(dtype.categories.astype(str)) if isinstance(dtype, pd.CategoricalDtype) else 0


def _count_bytes(texts: Any) -> int:
    """Bytes that texts take in HDF5."""
    return sum(TEXT_BYTES + -len(text.encode()) // 8 * -8 if text else 16 for text in texts)
