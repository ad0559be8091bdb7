"""Open data of any kind for training or for questions."""

from pathlib import Path
from typing import Any

import h5py
import zarr

from atlasvi.engine.minified.kept_posterior import MINIFY_TYPE, KeptPosterior
from atlasvi.engine.minified.minified_anndata import MinifiedAnnData, check_emptied, is_minified_anndata
from atlasvi.engine.minified.minified_by_scvi_tools import ScviMinified
from atlasvi.engine.minified.minified_store import MinifiedStore, is_minified_store, open_root, read_minify_type
from atlasvi.engine.model.covariates import KINDS, Setup, SetupKeys, learn_setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.question_cells import CountedCells, MinifiedCells, QuestionCells
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.arrays.array_checks import check_group_codecs, check_stored
from atlasvi.loaders.cells.memory_cells import NAME, MemoryCells, MemoryObs, list_layers
from atlasvi.loaders.cells.open_cells import CellData, open_cells
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import AtlasviError, ColumnError, CountsError, SourceError
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.sources.data_spec import DataSpec

SETUP = "_atlasvi_setup"  # in uns: arguments of setup_anndata; copies, subsets and files keep it


def is_anndata(data: Any) -> bool:
    """Whether `data` is an AnnData (does not import anndata)."""
    return any(f"{kind.__module__}.{kind.__name__}".startswith("anndata.") for kind in type(data).__mro__)


def write_setup(adata: Any, layer: str | None, keys: SetupKeys) -> None:
    """Keep the arguments of a set-up in `uns`, after checking the layer and the columns.

    Raises ColumnError if a layer or column does not exist, has missing values, or is not numeric where it must be.
    """
    obs = MemoryObs(adata)
    learn_setup(obs, keys, one_batch=True).read_codes(obs)
    if layer is not None and layer not in adata.layers:
        layers = ", ".join(list_layers(adata)) or "none"
        raise ColumnError(f"{NAME}: there is no layer {layer!r} (it has: {layers}).")
    adata.uns[SETUP] = _make_record(layer, keys)


def keep_setup(adata: Any, setup: Setup) -> None:
    """Keep the set-up of a model in the `uns` of its AnnData, unless it has one: then `SCVI(adata)` works too.

    Views are not changed: writing into one would turn it into a copy, separate from the caller's data.
    """
    if not adata.is_view and SETUP not in adata.uns:
        adata.uns[SETUP] = _make_record(setup.layer, setup.keys)


def _make_record(layer: str | None, keys: SetupKeys) -> dict[str, Any]:
    return {name: value for name, value in {"layer": layer, **keys.as_arguments()}.items() if value is not None}


def read_setup(adata: Any) -> tuple[str | None, SetupKeys]:
    """The layer and the keys that `write_setup` kept. Raises SettingError if there are none."""
    if SETUP not in adata.uns:
        raise SettingError("The AnnData is not set up: call SCVI.setup_anndata(adata, batch_key=...) first.")
    kept = dict(adata.uns[SETUP])
    for name in kept.keys() & {kind.key for kind in KINDS if kind.several}:
        kept[name] = list(kept[name])  # an array, if the AnnData comes from a file
    return kept.get("layer"), SetupKeys.from_arguments(kept)


def read_anndata(path: str | Path) -> Any:
    """A whole AnnData (file or Zarr folder) in memory. Raises SourceError if it can't be read safely and completely."""
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

    like   options for a path that does not have its own; also whether an AnnData may hold fractions
    layer  layer of an AnnData that holds the counts
    Raises SourceError for minified data.
    """
    if is_anndata(data):
        if is_minified_anndata(data, layer):
            raise SourceError(f"{NAME}: it is minified, so it has no counts: use the data that was minified.")
        cells = MemoryCells(data, layer, like.takes_fractions)
        check_emptied(cells)
        return cells
    return data if isinstance(data, CellData) else open_cells(data, like=like)


def open_question_cells(data: Any, run: TrainedRun) -> QuestionCells:
    """The same, or minified data, for questions to the model of `run`. Minified data is a minified store, or data that
    scvi-tools minified, as a path, as an AnnData, or opened by `open_minified`.

    Raises SourceError for data minified with another model, if its genes or latents show that.
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
    """The AnnData of a model in its present state. Counts are read again only if they changed since `known` was opened.

    Raises CountsError if they are no longer counts.
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
    """Minified data of any kind; None if the data is not minified, or still has its counts."""
    if isinstance(data, (DataSpec, str, Path)):
        path = data.place if isinstance(data, DataSpec) else to_place(data)
        if is_minified_store(path):
            return MinifiedStore(path)
        return ScviMinified(path, run) if read_minify_type(path) == MINIFY_TYPE else None
    if is_anndata(data) and is_minified_anndata(data, run.setup.layer):
        return MinifiedAnnData(data)
    return data if isinstance(data, KeptPosterior) else None
