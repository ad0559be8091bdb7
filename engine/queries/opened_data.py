"""Data of any kind, opened to be trained on or to be asked about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import zarr

from atlasvi.engine.minified.kept_posterior import MINIFY_TYPE, KeptPosterior
from atlasvi.engine.minified.minified_anndata import MinifiedAnnData, check_emptied, is_minified_anndata
from atlasvi.engine.minified.minified_by_scvi_tools import ScviMinified
from atlasvi.engine.minified.minified_store import MinifiedStore, is_minified_store, open_root, read_minify_type
from atlasvi.engine.model.covariates import KEYS, Setup, SetupKeys, learn_setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.question_cells import CountedCells, MinifiedCells, QuestionCells
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.arrays.array_checks import check_group_codecs, check_stored
from atlasvi.loaders.cells.memory_cells import NAME, MemoryCells, MemoryObs, list_layers
from atlasvi.loaders.cells.open_cells import CellData, open_cells
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import AtlasviError, ColumnError, CountsError, SourceError
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


def open_question_cells(data: Any, run: TrainedRun) -> QuestionCells:
    """The same, or minified data, asked by the model of `run`: a minified store, or data that scvi-tools minified, as a
    path, as an AnnData, or opened by `open_minified`.

    Raises SourceError for minified data of another model, as far as its genes and latents tell.
    """
    if (kept := _open_kept(data, run)) is not None:
        kept.check_model(run)
        return MinifiedCells(kept, run.setup)
    counts = open_counts(data, run.like, run.setup.layer)
    try:
        return CountedCells(counts, run.genes, run.setup)
    except AtlasviError:
        if counts is not data:
            counts.close()
        raise


def reopen_question_cells(adata: Any, run: TrainedRun, known: QuestionCells | None) -> QuestionCells:
    """The AnnData of a model as it is now. Its counts are read again only if they changed since `known` was opened.

    Raises CountsError, saying so, if they no longer are counts.
    """
    source = (
        known.source if isinstance(known, CountedCells) and not is_minified_anndata(adata, run.setup.layer) else None
    )
    if isinstance(source, MemoryCells) and (cells := source.look_again()) is not None:
        return CountedCells(cells, run.genes, run.setup)
    try:
        return open_question_cells(adata, run)
    except CountsError as error:
        raise CountsError(f"{error} It was changed after the model was made.") from None


def _open_kept(data: Any, run: TrainedRun) -> KeptPosterior | None:
    """Minified data of any kind; None if it is not minified, or has kept its counts."""
    if isinstance(data, (str, Path)):
        if is_minified_store(data):
            return MinifiedStore(data)
        return ScviMinified(data, run) if read_minify_type(data) == MINIFY_TYPE else None
    if is_anndata(data) and is_minified_anndata(data, run.setup.layer):
        return MinifiedAnnData(data)
    return data if isinstance(data, KeptPosterior) else None
