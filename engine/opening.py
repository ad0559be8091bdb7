"""Data of any kind, opened to be trained on or to be asked about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from atlasvi.engine.asked_cells import AskedCells, CountedCells, MinifiedCells
from atlasvi.engine.configuration import SettingError
from atlasvi.engine.covariates import learn_setup
from atlasvi.engine.minified import MINIFY_TYPE, MinifiedStore, is_minified_store
from atlasvi.engine.minified_anndata import TYPE_KEY, MinifiedAnnData
from atlasvi.engine.runs import TrainedRun
from atlasvi.loaders.cells import CellData, open_cells
from atlasvi.loaders.errors import ColumnError, SourceError
from atlasvi.loaders.memory import NAME, MemoryCells, MemoryObs, list_layers

SETUP = "_atlasvi_setup"  # in uns: what setup_anndata was told; it goes with copies, subsets and files
KEYS = (
    "layer",
    "batch_key",
    "labels_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)


def is_anndata(data: Any) -> bool:
    """Whether it is an AnnData (anndata is imported only if somebody has)."""
    return any(f"{kind.__module__}.{kind.__name__}".startswith("anndata.") for kind in type(data).__mro__)


def write_setup(adata: Any, asked: Mapping[str, Any]) -> None:
    """Keep in `uns` what the model is told of an AnnData (see `KEYS`), once it is found to be there.

    Raises ColumnError if a layer or column is not there, has missing values, or is no number where one is asked for.
    """
    obs = MemoryObs(adata)
    columns = {name: value for name, value in asked.items() if name != "layer"}
    learn_setup(obs, **columns, one_batch=True).read_codes(obs)
    if (layer := asked["layer"]) is not None and layer not in adata.layers:
        layers = ", ".join(list_layers(adata)) or "none"
        raise ColumnError(f"{NAME}: there is no layer {layer!r} (it has: {layers}).")
    adata.uns[SETUP] = {name: value for name, value in asked.items() if value is not None}


def read_setup(adata: Any) -> dict[str, Any]:
    """What `write_setup` kept. Raises SettingError if nothing was."""
    if SETUP not in adata.uns:
        raise SettingError("The AnnData is not set up: call SCVI.setup_anndata(adata, batch_key=...) first.")
    kept = adata.uns[SETUP]
    asked = {name: kept.get(name) for name in KEYS}
    return {
        name: list(value) if name.endswith("_keys") and value is not None else value for name, value in asked.items()
    }


def open_counts(data: Any, layer: str | None = None) -> CellData:
    """An AnnData, a cell store or any source (as a path or opened) as cells with counts.

    layer  of an AnnData or a source: which matrix. Raises SourceError for minified data.
    """
    if is_anndata(data):
        if data.uns.get(TYPE_KEY) == MINIFY_TYPE:
            raise SourceError(f"{NAME}: it is minified, so it has no counts: give the data that was minified.")
        return MemoryCells(data, layer)
    return open_cells(data, layer=layer) if isinstance(data, (str, Path)) else data


def open_asked(data: Any, run: TrainedRun) -> AskedCells:
    """The same, or minified data: a minified store, a minified AnnData or h5ad, asked by the model of `run`."""
    if isinstance(data, (str, Path)):
        if is_minified_store(data):
            data = MinifiedStore(data)
        elif _is_minified_h5ad(data):
            import anndata

            data = anndata.read_h5ad(data)
    if is_anndata(data) and data.uns.get(TYPE_KEY) == MINIFY_TYPE:
        data = MinifiedAnnData(data)
    if isinstance(data, MinifiedStore | MinifiedAnnData):
        return MinifiedCells(data, run.setup)
    return CountedCells(open_counts(data, run.setup.layer), run.genes, run.setup)


def _is_minified_h5ad(path: str | Path) -> bool:
    try:
        with h5py.File(path) as file:
            return f"uns/{TYPE_KEY}" in file
    except OSError:
        return False
