"""Data of any kind, opened to be trained on or to be asked about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import zarr

from atlasvi.engine.minified.minified_anndata import TYPE_KEY, MinifiedAnnData, check_emptied, is_minified_anndata
from atlasvi.engine.minified.minified_store import MinifiedStore, is_minified_store, open_root
from atlasvi.engine.model.covariates import KEYS, Setup, SetupKeys, learn_setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.question_cells import AskedCells, CountedCells, MinifiedCells
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.arrays.array_checks import check_group_codecs, check_stored
from atlasvi.loaders.cells.memory_cells import NAME, MemoryCells, MemoryObs, list_layers
from atlasvi.loaders.cells.open_cells import CellData, open_cells
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import ColumnError, CountsError, SourceError
from atlasvi.loaders.sources.data_spec import DataSpec

SETUP = "_atlasvi_setup"  # in uns: what setup_anndata was told; it goes with copies, subsets and files
KEPT = ("layer", *KEYS)


def is_anndata(data: Any) -> bool:
    """Whether it is an AnnData (anndata is imported only if somebody has)."""
    return any(f"{kind.__module__}.{kind.__name__}".startswith("anndata.") for kind in type(data).__mro__)


def write_setup(adata: Any, asked: Mapping[str, Any]) -> None:
    """Keep in `uns` what the model is told of an AnnData (see `KEPT`), once it is found to be there.

    Raises ColumnError if a layer or column is not there, has missing values, or is no number where one is asked for.
    """
    obs = MemoryObs(adata)
    learn_setup(obs, SetupKeys.from_asked(asked), one_batch=True).read_codes(obs)
    if (layer := asked["layer"]) is not None and layer not in adata.layers:
        layers = ", ".join(list_layers(adata)) or "none"
        raise ColumnError(f"{NAME}: there is no layer {layer!r} (it has: {layers}).")
    adata.uns[SETUP] = {name: value for name, value in asked.items() if value is not None}


def keep_setup(adata: Any, setup: Setup) -> None:
    """Keep in `uns` what a model knows of an AnnData, unless it was told already: then `SCVI(adata)` works too.

    A view stays one: writing into it would make it a copy that the caller does not have.
    """
    if not adata.is_view and SETUP not in adata.uns:
        kept = {"layer": setup.layer, **setup.keys.as_asked()}
        adata.uns[SETUP] = {name: value for name, value in kept.items() if value}


def read_setup(adata: Any) -> dict[str, Any]:
    """What `write_setup` kept. Raises SettingError if nothing was."""
    if SETUP not in adata.uns:
        raise SettingError("The AnnData is not set up: call SCVI.setup_anndata(adata, batch_key=...) first.")
    kept = adata.uns[SETUP]
    asked = {name: kept.get(name) for name in KEPT}
    return {
        name: list(value) if name.endswith("_keys") and value is not None else value for name, value in asked.items()
    }


def read_anndata(path: str | Path) -> Any:
    """All of an AnnData (file or Zarr folder) in memory. Raises SourceError if it can't be read safely and whole."""
    import anndata

    with reading(str(path)):
        root = open_root(path)
        try:
            for name in root:
                check_stored(str(path), root, name, fill_missing=name == "uns")
            if isinstance(root, zarr.Group):
                check_group_codecs(root)
        finally:
            if isinstance(root, h5py.File):
                root.close()
        return anndata.read_zarr(path) if Path(path).is_dir() else anndata.read_h5ad(path)


def open_counts(data: Any, like: DataSpec, layer: str | None = None) -> CellData:
    """An AnnData, a cell store or any source (as a path, as a DataSpec, or opened) as cells with counts.

    like   the options of a path that it does not say itself; whether values of an AnnData may be fractions
    layer  of an AnnData: which matrix
    Raises SourceError for minified data.
    """
    if is_anndata(data):
        if is_minified_anndata(data, layer):
            raise SourceError(f"{NAME}: it is minified, so it has no counts: give the data that was minified.")
        cells = MemoryCells(data, layer, like.takes_fractions)
        check_emptied(cells)
        return cells
    return open_cells(data, like=like) if isinstance(data, (DataSpec, str, Path)) else data


def open_asked(data: Any, run: TrainedRun) -> AskedCells:
    """The same, or minified data: a minified store, a minified AnnData or its file, asked by the model of `run`.

    Raises SourceError for minified data of another model, as far as its genes and latents tell.
    """
    if isinstance(data, (str, Path)):
        if is_minified_store(data):
            data = MinifiedStore(data)
        elif _is_minified_file(data):
            data = read_anndata(data)
    if is_anndata(data) and is_minified_anndata(data, run.setup.layer):
        data = MinifiedAnnData(data)
    if isinstance(data, MinifiedStore | MinifiedAnnData):
        _check_model(data, run)
        return MinifiedCells(data, run.setup)
    counts = open_counts(data, run.like, run.setup.layer)
    return CountedCells(counts, run.genes, run.setup)


def reopen_asked(adata: Any, run: TrainedRun, known: AskedCells | None) -> AskedCells:
    """The AnnData of a model as it is now. Its counts are read again only if they changed since `known` was opened.

    Raises CountsError, saying so, if they no longer are counts.
    """
    source = (
        known.source if isinstance(known, CountedCells) and not is_minified_anndata(adata, run.setup.layer) else None
    )
    if isinstance(source, MemoryCells) and (cells := source.look_again()) is not None:
        return CountedCells(cells, run.genes, run.setup)
    try:
        return open_asked(adata, run)
    except CountsError as error:
        raise CountsError(f"{error} It was changed after the model was made.") from None


def _check_model(data: MinifiedStore | MinifiedAnnData, run: TrainedRun) -> None:
    missing = pd.Index(run.genes).difference(data.genes, sort=False)
    if len(missing) or data.n_latent != run.model.n_latent:
        lacking = f"; gene {missing[0]!r} is missing" if len(missing) else ""
        raise SourceError(
            f"{data.path}: it has {len(data.genes):,} genes and {data.n_latent} latent dimensions, the model "
            f"{len(run.genes):,} and {run.model.n_latent}{lacking}: ask the model that it was minified with."
        )


def _is_minified_file(path: str | Path) -> bool:
    """Whether it is an AnnData, in HDF5 or Zarr, that says that it is minified."""
    try:
        if Path(path).is_dir():
            return f"uns/{TYPE_KEY}" in zarr.open_group(path, mode="r")
        with h5py.File(path) as file:
            return f"uns/{TYPE_KEY}" in file
    except (OSError, ValueError):
        return False
