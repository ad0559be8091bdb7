"""The minified store: the posterior of every cell, all of `obs` and `var`, the model, and no counts.

A plain AnnData Zarr v3 that scvi-tools opens as its own minified data:

    MINI/                                  attributes `atlasvi`: what this is, format version, sizes, settings
      X/ (and the layer that was trained on)  CSR of the right shape, empty: the counts are gone
      obs/                                 all columns of the data, and observed_lib_size (counts a cell)
      obsm/scvi_latent_qzm, scvi_latent_qzv  float32 [cells, latent]: mean and variance of q(z | x)
      var/
      uns/_scvi_adata_minify_type          'latent_posterior_parameters'
      uns/atlasvi/weights/<name>           the model's weights, so that the file answers questions by itself
"""

import io
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np
import pandas as pd
import zarr

from atlasvi.engine.covariates import Setup
from atlasvi.loaders.cell_store import check_version, read_attributes
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.outputs import sync_file, sync_tree, write_file_aside
from atlasvi.loaders.tables import AppendedArray, TableReader, TableWriter, place_rows, quiet_zarr

if TYPE_CHECKING:
    from atlasvi.engine.model import SCVI

FORMAT_VERSION = 1
KIND = "minified store"
MINIFY_TYPE = "latent_posterior_parameters"
MINIFIED = "_scvi_adata_minify_type"  # in uns: how scvi-tools marks minified data
LIBRARY = "observed_lib_size"
LATENTS = ("qzm", "qzv")


def is_minified_store(path: str | Path) -> bool:
    """Whether `path` is a finished minified store (of any version)."""
    attributes = read_attributes(path)
    return attributes is not None and attributes.get("kind") == KIND


def is_scvi_minified(path: str | Path) -> bool:
    """Whether `path` is an h5ad file or a Zarr folder that scvi-tools minified, or `write_minified_h5ad` wrote."""
    if not (h5py.is_hdf5(path) or any((Path(path) / name).is_file() for name in ("zarr.json", ".zgroup"))):
        return False
    with reading(str(path)), closing(open_root(path)) as root:
        return MINIFIED in root.get("uns", {})


def open_root(path: str | Path) -> Any:
    """The root group of an AnnData, in a file or a folder; its `close` does nothing for a folder."""
    if not Path(path).is_dir():
        return h5py.File(path, "r", locking="best-effort")
    root: Any = zarr.open_group(path, mode="r")
    root.close = lambda: None
    return root


def create_minified(
    path: Path,
    n_cells: int,
    n_latent: int,
    var: pd.DataFrame,
    dtypes: Mapping[str, object],
    weights: Mapping[str, np.ndarray],
    chunk_rows: int,
    layer: str | None = None,
) -> None:
    """Make a store without cells yet: processes write them with `write_cells`, and `finish_minified` closes it.

    dtypes      columns of obs, without observed_lib_size
    chunk_rows  of all arrays of cells, so that different processes write different chunks
    layer       that the counts were in; None: X
    """
    from anndata.io import write_elem

    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    layers = root.create_group("layers", attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
    _create_empty_matrix(root, "X", n_cells, len(var))
    if layer is not None:  # scvi-tools asks for the layer that the counts were in
        _create_empty_matrix(layers, layer, n_cells, len(var))
    TableWriter(root, "obs", n_cells, {**dtypes, LIBRARY: np.dtype(np.float32)}, chunk_rows)
    obsm = root.create_group("obsm", attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
    for name in LATENTS:
        AppendedArray(obsm, f"scvi_latent_{name}", n_cells, np.dtype(np.float32), (n_latent,), chunk_rows)
    with quiet_zarr():
        write_elem(root, "var", var)
        write_elem(root, "uns", {MINIFIED: MINIFY_TYPE, "atlasvi": {"weights": dict(weights)}})
        for name in ("obsp", "varm", "varp"):
            write_elem(root, name, {})


def write_cells(path: Path, start: int, record: Mapping[str, np.ndarray]) -> None:
    """Write whole chunks of cells, from `start` on, and flush them to disk.

    record  `qzm` and `qzv` float32 [cells, latent], and the `obs/` columns, observed_lib_size included
    """
    root = cast(Any, zarr.open_group(path, mode="r+"))
    place_rows(root["obs"], start, record)
    for name in LATENTS:
        array = root[f"obsm/scvi_latent_{name}"]
        array[start : start + len(record[name])] = record[name]
    chunk = str(start // array.chunks[0])
    for chunks in (path / "obs").rglob("c"), (path / "obsm").rglob("c"):
        for folder in chunks:
            if (folder / chunk).is_dir():
                sync_tree(folder / chunk)
            elif (folder / chunk).exists():
                sync_file(folder / chunk)


def finish_minified(path: Path, n_cells: int, n_genes: int, n_latent: int, model: Mapping[str, Any]) -> None:
    """Write the attributes that make the folder a minified store."""
    root = zarr.open_group(path, mode="r+")
    root.attrs["atlasvi"] = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_latent": n_latent,
        **model,
    }
    with quiet_zarr():
        zarr.consolidate_metadata(root.store)


def _create_empty_matrix(group: zarr.Group, name: str, n_cells: int, n_genes: int) -> None:
    """A CSR matrix of the right shape without a count."""
    shape = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]}
    matrix = group.create_group(name, attributes=shape)
    array: dict[str, Any] = {"encoding-type": "array", "encoding-version": "0.2.0"}
    matrix.create_array("data", shape=(0,), dtype="float32", attributes=array)
    matrix.create_array("indices", shape=(0,), dtype="int32", attributes=array)
    matrix.create_array("indptr", shape=(n_cells + 1,), chunks=(2**20,), dtype="int64", attributes=array)


class MinifiedStore:
    """A finished minified store, opened for reading by slices."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        attributes = read_attributes(path)
        if attributes is None or attributes.get("kind") != KIND:
            raise SourceError(f"{path} is not a minified store (make one with: atlasvi minify RUN DATA --out MINI).")
        check_version(attributes, path, FORMAT_VERSION)
        self.attributes: dict[str, Any] = attributes
        try:
            self._open()
        except (OSError, KeyError, ValueError) as error:
            raise SourceError(f"{path}: the store is damaged ({error}): copy it again, or minify again.") from error

    def _open(self) -> None:
        from anndata.io import read_elem

        root = cast(Any, zarr.open_group(self.path, mode="r"))
        self.n_cells: int = self.attributes["n_cells"]
        self.n_latent: int = self.attributes["n_latent"]
        self.var: pd.DataFrame = read_elem(root["var"])
        self.obs = TableReader(root["obs"], self.path)
        self._obsm, self._weights = root["obsm"], root["uns/atlasvi/weights"]

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the model."""
        return self.var.index

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model takes, and what its codes stand for."""
        first = ("batch_key", "batch_categories", "labels_key")  # all there was at first, not yet in a place of its own
        return Setup(**self.attributes.get("setup", {name: self.attributes.get(name) for name in first}))

    def read_column(self, name: str) -> pd.Series:
        """One obs column of all cells. Raises ColumnError, naming those that are there."""
        return self.obs.read_column(name)

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs."""
        return self.obs.columns

    def read_names(self) -> pd.Index:
        """Names of all cells."""
        return self.obs.read_names(0, self.n_cells)

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""
        return self._obsm["scvi_latent_qzm"][start:stop], self._obsm["scvi_latent_qzv"][start:stop]

    def model(self) -> "SCVI":
        """The model, ready to decode."""
        from atlasvi.engine.model import model_from_weights  # torch takes seconds, and latents can be read without

        weights = {name: np.asarray(array[...]) for name, array in self._weights.arrays()}
        return model_from_weights(self.attributes["model"], weights)


def write_minified_h5ad(store: "MinifiedStore | str | Path", path: str | Path) -> None:
    """The same minified data as one new h5ad file, which scvi-tools opens as its own; latents and obs pass memory.

    Raises SourceError if `store` is none, OutputError if `path` exists or can't be written.
    """
    import anndata
    from anndata.io import write_elem

    place = store.path if isinstance(store, MinifiedStore) else str(store)
    MinifiedStore(place)
    content = io.BytesIO()  # on a disk that is full HDF5 prints a page of errors and ends the process
    with quiet_zarr(), write_file_aside(path) as temporary:
        data = anndata.read_zarr(place)
        del data.uns["atlasvi"]  # weights: a model directory holds them there
        data.strings_to_categoricals()  # as `data.write_h5ad` does
        with h5py.File(content, "w") as file:
            write_elem(file, "/", data)
        temporary.write_bytes(content.getbuffer())
