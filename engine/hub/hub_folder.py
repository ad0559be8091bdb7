"""The folder of a model for scvi-tools' hub: `scvi.hub.HubModel(DIR)` opens it, and so does `SCVI.load(DIR)`."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from atlasvi.engine.card.model_card import METRICS, ModelCard
from atlasvi.engine.hub.hub_files import DATA, LIST, METADATA
from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.minified.minified_h5ad import plan_h5ad, write_h5ad
from atlasvi.engine.model.run_files import MODEL
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.scvi_tools.model_directories import PARTS, open_model, write_scvi_model
from atlasvi.engine.scvi_tools.registry import SCVI_VERSION
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.manifest import write_manifest
from atlasvi.loaders.outputs import write_folder_aside

LARGEST_DATA_BYTES = 5_000_000_000  # of a file that scvi-tools pushes to the hub
FILLED = 0.95  # of that, by a sample of the cells: their size is an estimate
SAMPLE = "atlasvi_sample"  # in uns of adata.h5ad, if it holds a sample


@dataclass(frozen=True)
class HubData:
    """What adata.h5ad of a hub folder holds.

    n_cells        cells in the file; 0: there is no file
    n_cells_total  cells that were minified; more than `n_cells` if the file would have been too large
    data_url       where all of the data is; None if that was not said
    why_none       why there is no file, as a sentence; ''
    """

    n_cells: int
    n_cells_total: int
    data_url: str | None = None
    why_none: str = ""

    @property
    def is_sample(self) -> bool:
        """Whether the file holds a sample of the cells."""
        return 0 < self.n_cells < self.n_cells_total

    def describe(self) -> str:
        """One or two sentences on what the file holds and where the rest is."""
        where = f" All of the data is at {self.data_url}." if self.data_url else ""
        if not self.n_cells:
            return f"There is no {DATA}: {self.why_none}{where}"
        if self.is_sample:
            return (
                f"{DATA} holds {self.n_cells:,} of {self.n_cells_total:,} cells, evenly spread over them: all would "
                f"pass {LARGEST_DATA_BYTES / 1e9:g} GB.{where}"
            )
        return f"{DATA} holds all {self.n_cells:,} cells, minified.{where}"


WritePages = Callable[[Path, HubData], None]
"""Writes README.md and card.html into the folder, which is not yet at its place; README.md is needed by HubModel."""


def write_hub_folder(
    out: str | Path,
    minified: KeptPosterior | str | Path | None,
    write_pages: WritePages,
    *,
    run: TrainedRun | str | Path | None = None,
    card: ModelCard | None = None,
    data_url: str | None = None,
    largest_bytes: int = LARGEST_DATA_BYTES,
) -> HubData:
    """Write a model as a new folder that `scvi.hub.HubModel` opens. Memory does not grow with the number of cells.

    minified       the cells: a minified store, minified data of scvi-tools, or either opened; None: no adata.h5ad
    write_pages    writes README.md and card.html
    run            the model; None: the one that the minified cells know
    card           is written as metrics.json
    data_url       where all of the data can be had: http(s) or ftp
    largest_bytes  of adata.h5ad; if all cells would take more, by an estimate that is made first, a sample is written
    Raises OutputError if `out` exists or can't be written (a full disk) or `data_url` is no address, SourceError if
    `minified` or `run` can't be read or do not belong together.
    """
    if data_url is not None:
        check_data_url(data_url)
    cells = minified if isinstance(minified, KeptPosterior) or minified is None else open_minified(minified)
    if run is None and cells is None:
        raise ValueError("write_hub_folder needs a run, or minified cells that know theirs")
    if run is None:
        assert cells is not None
        run = cells.run
    elif not isinstance(run, TrainedRun):
        run = open_model(run)
    if cells is not None:
        cells.check_model(run)
    with write_folder_aside(out) as scratch:
        result = scratch / "result"
        result.mkdir()
        return fill_hub_folder(result, cells, run, write_pages, card, data_url, largest_bytes)


def check_data_url(data_url: str) -> None:
    """Raise OutputError if this is no address of the web."""
    if not re.fullmatch(r"(https?|ftp)://[^\s/]+(/\S*)?", data_url):
        raise OutputError(f"{data_url!r} is not an address: it begins with https://, http:// or ftp://.")


def fill_hub_folder(
    folder: Path,
    cells: KeptPosterior | None,
    run: TrainedRun,
    write_pages: WritePages,
    card: ModelCard | None = None,
    data_url: str | None = None,
    largest_bytes: int = LARGEST_DATA_BYTES,
) -> HubData:
    """Write the files of `write_hub_folder` into a folder that is not at its place yet; the list of files is last."""
    held = _write_data(folder, cells, run, data_url, largest_bytes)
    # a sample has other row numbers than the cells that the split is of
    parts = {f"{name}_indices_": run.split.get(name) for name in PARTS} if not held.is_sample else {}
    write_scvi_model(run, folder / MODEL, parts)
    metadata = HubMetadata(SCVI_VERSION, version("anndata"), "SCVI", data_url)
    (folder / METADATA).write_text(json.dumps(asdict(metadata), indent=4))  # the very bytes that scvi-tools writes
    if card is not None:
        (folder / METRICS).write_text(card.to_json())
    write_pages(folder, held)
    write_manifest(folder, list_name=LIST)
    return held


@dataclass(frozen=True)
class HubMetadata:
    """The content of _scvi_required_metadata.json, as scvi-tools has it."""

    scvi_version: str
    anndata_version: str
    model_cls_name: str
    training_data_url: str | None = None
    model_parent_module: str = "scvi.model"


def _write_data(
    folder: Path, cells: KeptPosterior | None, run: TrainedRun, data_url: str | None, largest_bytes: int
) -> HubData:
    """Write adata.h5ad, with all cells or a sample of them."""
    n_cells = 0 if cells is None else cells.n_cells
    if cells is None:
        return HubData(0, 0, data_url, "no minified cells were given.")
    if run.model.settings.has_latent_library:
        return HubData(
            0,
            n_cells,
            data_url,
            "the model infers library sizes, and scvi-tools opens no minified data of such models.",
        )
    plan, rows, uns = plan_h5ad(cells), None, {}
    if plan.estimate_bytes(n_cells) > largest_bytes:
        n_kept = max(int((FILLED * largest_bytes - plan.other_bytes) / plan.bytes_per_cell), 1)
        rows = spread_rows(n_cells, n_kept)
        uns = {SAMPLE: {"n_cells": len(rows), "n_cells_total": n_cells, "data_url": data_url or ""}}
    layers = [] if run.setup.layer is None else [run.setup.layer]
    write_h5ad(plan, folder / DATA, rows, layers, uns)
    return HubData(n_cells if rows is None else len(rows), n_cells, data_url)


def spread_rows(n_cells: int, n_kept: int, seed: int = 0) -> np.ndarray:
    """Ascending int64 indices of a sample: a random one from each of `n_kept` runs of cells of nearly equal length.

    So each batch is sampled by its size, in whatever order cells are, without a random number for each cell.
    """
    n_kept = min(n_kept, n_cells)
    starts = np.arange(n_kept + 1) * n_cells // max(n_kept, 1)
    return starts[:-1] + np.random.default_rng(seed).integers(0, np.diff(starts))
