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

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import zarr

from atlasvi.engine.covariates import Setup
from atlasvi.loaders.cell_store import check_version, read_attributes
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.outputs import write_file_aside
from atlasvi.loaders.tables import AppendedArray, TableReader, TableWriter, quiet_zarr

FORMAT_VERSION = 1
KIND = "minified store"
MINIFY_TYPE = "latent_posterior_parameters"
LIBRARY = "observed_lib_size"


def is_minified_store(path: str | Path) -> bool:
    """Whether `path` is a finished minified store (of any version)."""
    attributes = read_attributes(path)
    return attributes is not None and attributes.get("kind") == KIND


class MinifiedWriter:
    """Appends cells to a new minified store at `path`; complete after `close`, once `n_cells` were appended."""

    def __init__(
        self, path: Path, n_cells: int, n_latent: int, var: pd.DataFrame, dtypes: Mapping[str, object], model: dict
    ) -> None:
        self.attributes = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "n_cells": n_cells,
            "n_genes": len(var),
            "n_latent": n_latent,
            **model,
        }
        self.root = zarr.open_group(path, mode="w-", zarr_format=3)
        self.root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self._var = var
        layers = self.root.create_group("layers", attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
        _create_empty_matrix(self.root, "X", n_cells, len(var))
        if layer := model["setup"]["layer"]:  # scvi-tools asks for the layer that the counts were in
            _create_empty_matrix(layers, layer, n_cells, len(var))
        self._obs = TableWriter(self.root, "obs", n_cells, {**dtypes, LIBRARY: np.dtype(np.float32)})
        obsm = self.root.create_group("obsm", attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
        self._latents = {
            name: AppendedArray(obsm, f"scvi_latent_{name}", n_cells, np.dtype(np.float32), (n_latent,))
            for name in ("qzm", "qzv")
        }

    def append(self, record: Mapping[str, np.ndarray]) -> None:
        """Add cells: `qzm` and `qzv` float32 [cells, latent], and the `obs/` columns, observed_lib_size included."""
        self._obs.append(record)
        for name, array in self._latents.items():
            array.append(record[name])

    def close(self, weights: Mapping[str, np.ndarray]) -> None:
        """Write var, the weights, and the attributes that make the folder a minified store."""
        from anndata.io import write_elem

        with quiet_zarr():
            write_elem(self.root, "var", self._var)
            write_elem(
                self.root, "uns", {"_scvi_adata_minify_type": MINIFY_TYPE, "atlasvi": {"weights": dict(weights)}}
            )
            for name in ("obsp", "varm", "varp"):
                write_elem(self.root, name, {})
            self.root.attrs["atlasvi"] = self.attributes
            zarr.consolidate_metadata(self.root.store)


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

    def read_weights(self) -> dict[str, np.ndarray]:
        """The model's weights by name."""
        return {name: np.asarray(array[...]) for name, array in self._weights.arrays()}


def write_minified_h5ad(store: "MinifiedStore | str | Path", path: str | Path) -> None:
    """The same minified data as one new h5ad file, which scvi-tools opens as its own; latents and obs pass memory.

    Raises SourceError if `store` is none, OutputError if `path` exists or can't be written.
    """
    import anndata

    place = store.path if isinstance(store, MinifiedStore) else str(store)
    MinifiedStore(place)
    with quiet_zarr(), write_file_aside(path) as temporary:
        data = anndata.read_zarr(place)
        del data.uns["atlasvi"]  # weights: a model directory holds them there
        data.write_h5ad(temporary)
