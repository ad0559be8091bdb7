"""AnnData files: .h5ad, and Zarr v2 or v3 as a folder or a zip. One implementation over h5py.Group and zarr.Group."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from atlasvi.loaders.arrays.array_checks import Node, check_inside, check_stored, is_array
from atlasvi.loaders.arrays.matrices import CompressedRows, DenseRows, Matrix, SpooledColumns
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.hdf5_files import open_hdf5
from atlasvi.loaders.places.object_path import Place, open_folder
from atlasvi.loaders.places.zarr_stores import open_group, open_zip
from atlasvi.loaders.sources.annbatch import Collection, name_datasets
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.matrix_source import MatrixSource
from atlasvi.loaders.tables.anndata_tables import open_table, read_text, to_str
from atlasvi.loaders.zarr_warnings import quiet_libraries

SAMPLE = 2**14  # number of values that are checked to decide whether a matrix holds counts


class AnnDataSource(MatrixSource):
    """Cells of an AnnData file, with one of its matrices (`X`, a layer, or `raw`), by slices of rows.

    Memory besides what is returned: `var`, the categories of `obs`, one chunk of each array, and for a CSC matrix one
    bucket of spool.py. Use `open_h5ad` or `open_anndata_zarr`.
    """

    def __init__(self, spec: DataSpec, root: Node, close_root: Callable[[], None], scratch: str | Path | None):
        path, self._close_root = spec.path, close_root
        for name in ("obs", "var"):
            if name not in root:
                raise SourceError(f"{path}: it has no {name}, so it is not an AnnData file; write it with anndata.")
        self.layers = name_layers(root)
        self.layer = spec.layer or choose_layer(path, root, self.layers, spec.fill_missing)
        where, var_key = find_matrix(path, root, self.layer, self.layers)
        uns = root["uns"] if "uns" in root and not is_array(root["uns"]) else None
        if where == "X":
            check_not_minified(path, uns)
        notes = []
        if spec.layer is None and self.layer != "X":
            notes.append(f"{path}: the counts are those of {self.layer}, as X does not hold whole numbers.")
        for key in ("obs", var_key, where):
            if zeros := check_stored(path, root, key, spec.fill_missing):
                notes.append(f"{path}: missing chunks of {', '.join(zeros)} are read as zeros.")
        self._obs = open_table(path, "obs", root["obs"], uns)
        var = open_table(path, var_key, root[var_key], uns)
        self.anndata_layer = self.layer if where == f"layers/{self.layer}" else None
        super().__init__(spec, open_matrix(path, where, root[where], scratch))
        self.notes = notes
        if self._matrix.shape != (self._obs.n_rows, var.n_rows):
            raise SourceError(
                f"{path}: {where} is {self._matrix.shape[0]} x {self._matrix.shape[1]} where obs has "
                f"{self._obs.n_rows} rows and {var_key} {var.n_rows}; write the file again with anndata."
            )
        self.var: pd.DataFrame = var.read(0, var.n_rows)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, the cell names as index; `read_obs(0, 0)` gives the columns and their dtypes."""
        with reading(self.path), quiet_libraries():
            return self._obs.read(start, stop)

    def close(self) -> None:
        """Close the file and remove temporary ones."""
        self._matrix.close()
        self._close_root()


def open_h5ad(spec: DataSpec, scratch: str | Path | None = None) -> AnnDataSource:
    """Open an .h5ad or .h5mu file. Raises SourceError where it can't be read as counts."""
    with reading(spec.path):
        file = open_hdf5(spec.place)
        return _open(spec, file, file.close, scratch)


def open_anndata_zarr(spec: DataSpec, scratch: str | Path | None = None) -> "AnnDataSource | Collection":
    """Open a Zarr folder of AnnData, MuData or SpatialData, a zip of one, or annbatch's collection of several."""
    with reading(spec.path), quiet_libraries():
        # Consolidated metadata is ignored: it may contain dtypes (in uns) that this zarr does not know, or be false.
        place = spec.place
        if place.is_dir():
            place = open_folder(place)
            root = open_group(place)
            if "obs" not in root and (names := name_datasets(root)):
                return open_collection(spec, place, names, scratch)
            return _open(spec, root, lambda: None, scratch)
        inside = folder_in_zip(spec.path, place)
        store = open_zip(place)
        return _open(spec, zarr.open_group(store, path=inside, mode="r", use_consolidated=False), store.close, scratch)


def open_collection(spec: DataSpec, folder: Place, names: list[str], scratch: str | Path | None) -> "Collection":
    """Open the datasets in the folder of a collection as one source."""
    parts: list[AnnDataSource] = []
    try:
        for name in names:
            place = folder / name
            with reading(str(place)):
                parts.append(AnnDataSource(replace(spec, path=str(place)), open_group(place), lambda: None, scratch))
        return Collection(spec, parts)
    except BaseException:
        for part in parts:
            part.close()
        raise


def _open(spec: DataSpec, root: Node, close_root: Callable[[], None], scratch: str | Path | None) -> AnnDataSource:
    try:
        return AnnDataSource(spec, find_anndata(spec, root), close_root, scratch)
    except BaseException:
        close_root()
        raise


def find_anndata(spec: DataSpec, root: Node) -> Node:
    """The AnnData in a file: the file itself, or one of several in MuData (a modality) or SpatialData (a table).

    Raises SourceError where it is not clear which one.
    """
    for folder, what in (("mod", "MuData"), ("tables", "SpatialData")):
        if folder in root and not is_array(root[folder]) and "X" not in root:
            names = sorted(str(name) for name in root[folder])
            wanted = spec.measurement
            if wanted is None:
                genes = [name for name in names if name.lower() in ("rna", "gex", "gene_expression")] or names
                wanted = genes[0] if len(genes) == 1 else None
            if wanted not in names:
                problem = "has several" if wanted is None else f"has no {wanted!r}"
                raise SourceError(
                    f"{spec.path}: {what}, which {problem} of these: {', '.join(names)}; name the one with the counts: "
                    f"--measurement NAME, or {spec.path}::measurement=NAME"
                )
            return check_inside(spec.path, root, f"{folder}/{wanted}")
    return root


def folder_in_zip(path: str, place: Place) -> str:
    """The folder inside the zip that is the Zarr group: the top ('') or one below, where a folder was zipped."""
    with place.open("rb") as file, zipfile.ZipFile(file) as archive:
        roots = [name for name in archive.namelist() if name.split("/")[-1] in ("zarr.json", ".zgroup")]
    if not roots:
        raise SourceError(f"{path}: the zip holds no Zarr group; unpack it and pass the matrix inside.")
    return min(roots, key=lambda name: name.count("/")).rpartition("/")[0]


def name_layers(root: Node) -> list[str]:
    """The values that `layer` may have: X if there is one, the layers, raw if there is one."""
    names = ["X"] if has_matrix(root, "X") else []
    if "layers" in root and not is_array(root["layers"]):
        names += sorted(str(name) for name in root["layers"])  # Zarr lists members in no fixed order
    if "raw" not in names and (has_matrix(root, "raw/X") or has_matrix(root, "raw.X")):
        names.append("raw")
    return names


def has_matrix(root: Node, key: str) -> bool:
    """Whether there is a matrix at `key`; newer versions store X = None as an element of encoding 'null'."""
    return key in root and to_str(root[key].attrs.get("encoding-type", "")) != "null"


def choose_layer(path: str, root: Node, layers: list[str], fill_missing: bool) -> str:
    """X, or raw if X does not hold whole numbers and raw does (as in files of CELLxGENE).

    Raises SourceError where there is no X.
    """
    if not layers:
        raise SourceError(f"{path}: it has no X and no layers, so no counts; pass another file.")
    if "X" not in layers:
        raise SourceError(f"{path}: it has no X; pass --layer NAME (this file has: {', '.join(layers)}).")
    if "raw" not in layers or are_whole(path, root, "X", fill_missing):
        return "X"
    where, _ = find_matrix(path, root, "raw", layers)
    return "raw" if are_whole(path, root, where, fill_missing) else "X"


def are_whole(path: str, root: Node, where: str, fill_missing: bool) -> bool:
    """Whether the first stored values of a matrix are whole numbers and not negative."""
    where = where if is_array(root[where]) else f"{where}/data"
    if where not in root:
        return True  # an unknown kind of matrix: opening it raises an error
    check_stored(path, root, where, fill_missing)
    values = root[where]
    if values.dtype.kind not in "iufb":
        return False
    row_size = int(np.prod(values.shape[1:], dtype=object))
    sample = np.asarray(values[: max(1, SAMPLE // max(row_size, 1))])
    with np.errstate(invalid="ignore"):
        return bool(((sample >= 0) & (np.floor(sample) == sample) & np.isfinite(sample)).all())


def find_matrix(path: str, root: Node, layer: str, layers: list[str]) -> tuple[str, str]:
    """Where the matrix and its var are; 'raw' means raw, unless a layer has this name."""
    if layer not in layers:
        raise SourceError(
            f"{path}: it has no layer {layer!r} (this file has: {', '.join(layers)}): name one of these; "
            f"{path}::layer=NAME names it for this file alone."
        )
    if layer == "X":
        return "X", "var"
    if "layers" in root and layer in root["layers"]:
        return f"layers/{layer}", "var"
    return ("raw/X", "raw/var") if "raw" in root else ("raw.X", "raw.var")


def check_not_minified(path: str, uns: Node | None) -> None:
    """Raise SourceError for a file that was minified by scvi-tools, so that its X is empty."""
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

    Raises SourceError where it is stored otherwise, or its parts do not fit each other.
    """
    if is_array(node):
        if len(node.shape) != 2:
            raise SourceError(f"{path}: {name} has {len(node.shape)} dimensions where a matrix has two.")
        return DenseRows(path, name, node)
    attrs = node.attrs
    encoding = to_str(attrs.get("encoding-type", attrs.get("h5sparse_format", "")))
    form = encoding.removesuffix("_matrix")
    if form not in ("csr", "csc"):
        raise SourceError(
            f"{path}: {name} is stored as {encoding or 'an unknown group'!r}, which can't be read as a matrix; "
            "write it as CSR or dense with anndata."
        )
    declared = np.asarray(attrs["shape" if "shape" in attrs else "h5sparse_shape"]).tolist()
    n_rows, n_cols = (int(n) for n in declared)
    parts = node["data"], node["indices"], node["indptr"]
    if form == "csr":
        return CompressedRows(path, name, *parts, (n_rows, n_cols))
    return SpooledColumns(path, name, *parts, (n_rows, n_cols), scratch)
