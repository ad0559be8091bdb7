"""AnnData files: .h5ad, and Zarr v2 or v3 as a folder or a zip. One implementation over h5py.Group and zarr.Group."""

import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import scipy.sparse as sp
import zarr
from zarr.storage import ZipStore

from atlasvi.loaders.anndata_tables import Node, check_no_pickle, is_array, open_table, read_text, to_str
from atlasvi.loaders.collection import Collection, name_datasets
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.matrices import CompressedRows, DenseRows, Matrix, SpooledColumns, count_piece_rows, read_narrow
from atlasvi.loaders.rows import Rows
from atlasvi.loaders.runs import choose_run

# A chunk whose elements are all zero need not be stored. Up to so many zeros at an array's end are believed.
BELIEVED_ZEROS = 16


class AnnDataSource:
    """Cells of an AnnData file, one matrix of it (`X`, a layer, or `raw`) by slices of rows.

    Memory beside what is returned: `var`, the categories of `obs`, one chunk of each array, and for a CSC matrix one
    bucket of spool.py. Use `open_h5ad` or `open_anndata_zarr`.
    """

    shuffled = False  # its authors' order

    def __init__(
        self, path: str, root: Node, close_root: Callable[[], None], layer: str | None, scratch: str | Path | None
    ):
        self.path = path
        self._close_root = close_root
        for name in ("obs", "var"):
            if name not in root:
                raise SourceError(f"{path}: it has no {name}, so it is no AnnData file; write it with anndata.")
        self.layer, self.layers = layer or "X", name_layers(root)
        where, var_key = find_matrix(path, root, layer, self.layers)
        uns = root["uns"] if "uns" in root and not is_array(root["uns"]) else None
        if where == "X":
            check_not_minified(path, uns)
        self._obs = open_table(path, "obs", root["obs"], uns)
        var = open_table(path, var_key, root[var_key], uns)
        self._matrix = open_matrix(path, where, root[where], scratch)
        if self._matrix.shape != (self._obs.n_rows, var.n_rows):
            raise SourceError(
                f"{path}: {where} is {self._matrix.shape[0]} x {self._matrix.shape[1]} where obs has "
                f"{self._obs.n_rows} rows and {var_key} {var.n_rows}; write the file anew with anndata."
            )
        self.n_cells, self.nnz = self._obs.n_rows, self._matrix.nnz
        self.var: pd.DataFrame = var.read(0, var.n_rows)

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes, as stored: canonical CSR, values not validated."""
        with reading(self.path):
            return self._matrix.read_rows(start, stop)

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as narrow counts, fast; None where `read_counts` must be asked."""
        with reading(self.path):
            return read_narrow(self._matrix, start, stop)

    def count_piece_cells(self) -> float:
        """Cells that are decoded together."""
        with reading(self.path):
            return count_piece_rows(self._matrix)

    def count_run_cells(self) -> int:
        """Cells that are best read at a time, from a multiple of them on."""
        return choose_run(self.count_piece_cells(), self.shuffled)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, index the cell names; `read_obs(0, 0)` gives the columns and their types."""
        with reading(self.path), quiet():
            return self._obs.read(start, stop)

    def close(self) -> None:
        """Close the file and remove temporary ones."""
        self._matrix.close()
        self._close_root()


def open_h5ad(path: str, layer: str | None = None, scratch: str | Path | None = None) -> AnnDataSource:
    """Open an .h5ad file; `layer` as in `find_matrix`. Raises SourceError where it can't be read as counts."""
    with reading(path):
        file = h5py.File(path, "r", locking="best-effort")  # folders on a network often know no locks
        return _open(path, file, file.close, layer, scratch)


def open_anndata_zarr(
    path: str, layer: str | None = None, scratch: str | Path | None = None
) -> "AnnDataSource | Collection":
    """Open an AnnData Zarr folder, a zip of one, or annbatch's collection of several; otherwise as `open_h5ad`."""
    with reading(path), quiet():
        if Path(path).is_dir():
            root = zarr.open_group(path, mode="r", use_consolidated=False)
            if "obs" not in root and (names := name_datasets(root)):
                return open_collection(path, names, layer, scratch)
            return _open(path, root, lambda: None, layer, scratch)
        inside = folder_in_zip(path)
        store = ZipStore(path, mode="r")
        # Consolidated metadata is not needed, and may hold types (of uns) that this zarr does not know.
        return _open(
            path, zarr.open_group(store, path=inside, mode="r", use_consolidated=False), store.close, layer, scratch
        )


def open_collection(path: str, names: list[str], layer: str | None, scratch: str | Path | None) -> "Collection":
    """Open the datasets of a collection as one source."""
    parts: list[AnnDataSource] = []
    try:
        for name in names:
            place = str(Path(path) / name)
            with reading(place):
                group = zarr.open_group(place, mode="r", use_consolidated=False)
                parts.append(AnnDataSource(place, group, lambda: None, layer, scratch))
        return Collection(path, parts)
    except BaseException:
        for part in parts:
            part.close()
        raise


def _open(
    path: str, root: Node, close_root: Callable[[], None], layer: str | None, scratch: str | Path | None
) -> AnnDataSource:
    try:
        return AnnDataSource(path, root, close_root, layer, scratch)
    except BaseException:
        close_root()
        raise


def folder_in_zip(path: str) -> str:
    """Return the folder inside the zip that is the Zarr group: the top ('') or one below, where a folder was zipped."""
    with zipfile.ZipFile(path) as archive:
        roots = [name for name in archive.namelist() if name.split("/")[-1] in ("zarr.json", ".zgroup")]
    if not roots:
        raise SourceError(f"{path}: the zip holds no Zarr group; unpack it and pass the matrix inside.")
    return min(roots, key=lambda name: name.count("/")).rpartition("/")[0]


def name_layers(root: Node) -> list[str]:
    """Return what `layer` may be: X if there is one, the layers, raw if there is one."""
    names = ["X"] if has_matrix(root, "X") else []
    if "layers" in root and not is_array(root["layers"]):
        names += sorted(str(name) for name in root["layers"])  # Zarr lists in any order
    if "raw" not in names and (has_matrix(root, "raw/X") or has_matrix(root, "raw.X")):
        names.append("raw")
    return names


def has_matrix(root: Node, key: str) -> bool:
    """Whether there is a matrix at `key`; what newer versions write for X = None is none."""
    return key in root and to_str(root[key].attrs.get("encoding-type", "")) != "null"


def find_matrix(path: str, root: Node, layer: str | None, layers: list[str]) -> tuple[str, str]:
    """Return where the matrix and its var are: `layer` None or 'X' is X, 'raw' is raw unless a layer is called so."""
    if not layers:
        raise SourceError(f"{path}: it has no X and no layers, so no counts; pass another file.")
    if layer is None and "X" not in layers:
        raise SourceError(f"{path}: it has no X; pass --layer NAME (this file has: {', '.join(layers)}).")
    if layer is not None and layer not in layers:
        raise SourceError(f"{path}: it has no layer {layer!r} (this file has: {', '.join(layers)}).")
    if layer is None or layer == "X":
        return "X", "var"
    if "layers" in root and layer in root["layers"]:
        return f"layers/{layer}", "var"
    return ("raw/X", "raw/var") if "raw" in root else ("raw.X", "raw.var")


def check_not_minified(path: str, uns: Node | None) -> None:
    """Raise SourceError for a file whose X was emptied by scVI's minification."""
    if uns is None or "_scvi_adata_minify_type" not in uns:
        return
    kind = to_str(read_text(uns["_scvi_adata_minify_type"]))
    if not kind.endswith("with_counts"):
        raise SourceError(
            f"{path}: it was minified by scVI ({kind}), so it has latent parameters and no counts; "
            "pass the data that the model was trained on."
        )


def open_matrix(path: str, name: str, node: Node, scratch: str | Path | None) -> Matrix:
    """Open the matrix `node`: dense, CSR or CSC as anndata (or h5sparse, before 0.7) stores them.

    Raises SourceError where it is something else, or its parts do not fit each other.
    """
    if is_array(node):
        check_no_pickle(node)
        if len(node.shape) != 2:
            raise SourceError(f"{path}: {name} has {len(node.shape)} dimensions where a matrix has two.")
        return DenseRows(path, name, node)
    attrs = node.attrs
    encoding = to_str(attrs.get("encoding-type", attrs.get("h5sparse_format", "")))
    form = encoding.removesuffix("_matrix")
    if form not in ("csr", "csc"):
        raise SourceError(
            f"{path}: {name} is stored as {encoding or 'an unknown group'!r}, no matrix that can be read here; "
            "write it as CSR or dense with anndata."
        )
    n_rows, n_cols = (int(n) for n in attrs["shape" if "shape" in attrs else "h5sparse_shape"])
    parts = node["data"], node["indices"], node["indptr"]
    for part, array in zip(("data", "indices", "indptr"), parts):
        check_no_pickle(array)
        # With one gene or cell, all-zero indices are what they should be.
        if part != "indices" or min(n_rows, n_cols) > 1:
            check_all_chunks(path, f"{name}/{part}", array)
    if form == "csr":
        return CompressedRows(path, name, *parts, (n_rows, n_cols))
    return SpooledColumns(path, name, *parts, (n_rows, n_cols), scratch)


def check_all_chunks(path: str, name: str, array: Any) -> None:
    """Raise SourceError where chunks of a one-dimensional Zarr array are missing.

    Zarr reads a missing chunk as zeros: an incomplete copy would lose counts without a word.
    """
    if not isinstance(array, zarr.Array) or not array.shape[0]:
        return
    length, inner = array.shape[0], array.chunks[0]
    stored = array.shards[0] if array.shards else inner
    n_expected = -(-length // stored)
    n_there = array.nchunks_initialized // (stored // inner)
    tail = length - (n_expected - 1) * stored
    if n_expected - n_there > (tail <= BELIEVED_ZEROS):
        raise SourceError(
            f"{path}: {n_expected - n_there} of {n_expected} chunks of {name} are missing: the copy is incomplete; "
            "copy it again."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries warn of on opening other people's files: types and codecs off Zarr's standard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
