"""Tables as an AnnData: names and text in obs, numbers in X, written by slices to an h5ad file or a Zarr folder."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr

from atlasvi.engine.queries.answer_rows import Rows, Table, check_distinct, split_rows
from atlasvi.loaders.zarr_warnings import quiet_zarr

ROOT = {"encoding-type": "anndata", "encoding-version": "0.1.0"}
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
Append = Callable[[np.ndarray], None]


def write_h5ad(file: Path, table: Table) -> int:
    """Write a table as h5ad; returns the number of rows. Columns of text are categorical."""
    with closing(h5py.File(file, "w")) as root:

        def create(name: str, part: np.ndarray) -> Append:
            shape = (0, *part.shape[1:])
            chunks = (max(len(part), 1), *(max(width, 1) for width in part.shape[1:]))
            is_text = part.dtype == object
            array = root.create_dataset(
                name,
                shape=shape,
                maxshape=(None, *part.shape[1:]),
                chunks=chunks,
                dtype=h5py.string_dtype() if is_text else part.dtype,
                compression="gzip",
                compression_opts=1,
            )
            array.attrs.update(TEXT if is_text else ARRAY)

            def append(rows: np.ndarray) -> None:
                array.resize(len(array) + len(rows), axis=0)
                array[len(array) - len(rows) :] = rows

            return append

        return _write_anndata(root, table, create)


def write_zarr(folder: Path, table: Table) -> int:
    """Write a table as an AnnData Zarr folder (format 3), as `write_h5ad` does; returns the number of rows."""
    root = zarr.open_group(folder, mode="w", zarr_format=3)

    def create(name: str, part: np.ndarray) -> Append:
        is_text = part.dtype == object
        array = root.create_array(
            name,
            shape=(0, *part.shape[1:]),
            chunks=(max(len(part), 1), *(max(width, 1) for width in part.shape[1:])),
            dtype=str if is_text else part.dtype,
            attributes=dict(TEXT if is_text else ARRAY),
        )

        def append(rows: np.ndarray) -> None:
            array.append(rows.astype(str) if is_text else rows)

        return append

    with quiet_zarr():
        return _write_anndata(root, table, create)


def _write_anndata(root: Any, table: Table, create: Callable[[str, np.ndarray], Append]) -> int:
    """Fill the root group of an AnnData. create: makes an empty array like these rows, returns what appends to it."""
    from anndata.io import write_elem

    root.attrs.update(ROOT)
    n_rows, appends = 0, dict[str, Append]()
    categories: dict[str, dict[str, int]] = {}
    columns: list[str] = []

    def append(name: str, part: np.ndarray) -> None:
        if name not in appends:
            appends[name] = create(name, part)
        appends[name](part)

    obs = root.create_group("obs")
    slices = split_rows(table.slices, len(table.columns))
    empty = Rows(pd.Index([], dtype=object), pd.DataFrame(), np.empty((0, len(table.columns)), np.float32))
    for rows in _at_least_one(slices, empty):
        if n_rows == 0:
            columns = [str(name).replace("/", "_") for name in rows.beside.columns]  # a slash would make a group
            check_distinct([*columns, "_index"], "the obs of an AnnData")
        append("obs/_index", np.array([str(name) for name in rows.names], object))
        for name, column in zip(columns, (rows.beside[each] for each in rows.beside)):
            if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
                append(f"obs/{name}", column.to_numpy())
            elif column.dtype.kind == "f":  # of pandas, in which missing numbers are marked
                append(f"obs/{name}", column.to_numpy(np.float64, na_value=np.nan))
            elif nullable := _name_nullable(column.dtype):
                append(f"obs/{name}/values", column.to_numpy(column.dtype.numpy_dtype, na_value=column.dtype.type(0)))
                append(f"obs/{name}/mask", column.isna().to_numpy())
                obs[name].attrs.update({"encoding-type": nullable, "encoding-version": "0.1.0"})
            else:
                append(f"obs/{name}/codes", _encode(column, categories.setdefault(name, {})))
        if table.columns:
            append("X", rows.values)
        n_rows += len(rows.names)
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    obs.attrs["column-order"] = np.array(columns, object) if isinstance(root, h5py.File) and columns else columns
    for name, known in categories.items():
        group = obs[name]
        group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        write_elem(group, "categories", np.array(list(known), object))
    write_elem(root, "var", pd.DataFrame(index=pd.Index(table.columns, dtype=object)))
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
        write_elem(root, name, {})
    return n_rows


def _at_least_one(slices: Iterator[Rows], empty: Rows) -> Iterator[Rows]:
    none_came = True
    for rows in slices:
        none_came = False
        yield rows
    if none_came:
        yield empty


def _name_nullable(dtype: Any) -> str | None:
    """How AnnData calls pandas' columns of whole numbers or truth values of which some may be missing."""
    if not isinstance(dtype, pd.api.extensions.ExtensionDtype):
        return None
    return {"i": "nullable-integer", "u": "nullable-integer", "b": "nullable-boolean"}.get(dtype.kind)


def _encode(column: pd.Series, known: dict[str, int]) -> np.ndarray:
    """int32 codes of the texts of a column, -1 where it is missing; new texts are added to `known`."""
    codes, values = pd.factorize(column.astype(object))
    table = [known.setdefault(str(value), len(known)) for value in values]
    return np.array([*table, -1], np.int32)[codes]
