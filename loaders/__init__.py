"""atlasvi.loaders: counts on disk -> sparse minibatches. In the order in which data meets it:

DataSpec         where data is and how it is read                 sources/data_spec.py
open_source      any file of counts, read by slices of rows      sources/ (open_source, anndata_files, tenx, soma ...)
Source           the protocol of all of them                      sources/source_protocol.py
ingest           sources -> a cell store, shuffled out of core   ingestion/ingest.py
open_cells       a cell store, or a source, as blocks of cells   cells/open_cells.py, cells/cell_store.py
Cells            the protocol of all cells in blocks              cells/cells_protocol.py
add_obs_columns  adds columns to obs of a finished store          cells/added_columns.py
MemoryCells      an AnnData in memory, as blocks of cells         cells/memory_cells.py
BatchLoader      cells -> minibatches, for any PyTorch model     batches/loader.py (epoch_order, cell_selection)
DeviceFeeder     minibatches -> a GPU, ahead of the model        batches/device_feeder.py
Batch            one minibatch: CSR counts, library, covariates  batches/batch.py
AtlasviError     an error that a user can correct, in a sentence  errors.py
Storage          how buckets are reached; `use_storage` sets it   places/storage.py
use_cache        keeps what is read from buckets on local disk     places/disk_cache.py

Below them: tables/ (obs and var), arrays/ (HDF5 and Zarr, read fast), rows/ (sparse rows in memory), places/ (files on
disk and objects in buckets). A subpackage imports only those that are named after it here. Nothing is imported before
it is used: ingest runs without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

import atlasvi.loaders.numba_cache  # noqa: F401

if TYPE_CHECKING:  # what editors and mypy see
    from atlasvi.loaders.batches.batch import Batch as Batch
    from atlasvi.loaders.batches.device_feeder import DeviceFeeder as DeviceFeeder
    from atlasvi.loaders.batches.loader import BatchLoader as BatchLoader
    from atlasvi.loaders.cells.added_columns import add_obs_columns as add_obs_columns
    from atlasvi.loaders.cells.cell_store import CellStore as CellStore
    from atlasvi.loaders.cells.cells_protocol import Cells as Cells
    from atlasvi.loaders.cells.memory_cells import MemoryCells as MemoryCells
    from atlasvi.loaders.cells.open_cells import CellData as CellData
    from atlasvi.loaders.cells.open_cells import open_cells as open_cells
    from atlasvi.loaders.errors import AtlasviError as AtlasviError
    from atlasvi.loaders.ingestion.ingest import IngestReport as IngestReport
    from atlasvi.loaders.ingestion.ingest import ingest as ingest
    from atlasvi.loaders.places.disk_cache import use_cache as use_cache
    from atlasvi.loaders.places.storage import Storage as Storage
    from atlasvi.loaders.places.storage import use_storage as use_storage
    from atlasvi.loaders.sources.data_spec import DataSpec as DataSpec
    from atlasvi.loaders.sources.open_source import open_source as open_source
    from atlasvi.loaders.sources.source_protocol import Source as Source

_PLACES = {
    "DataSpec": "atlasvi.loaders.sources.data_spec",
    "open_source": "atlasvi.loaders.sources.open_source",
    "Source": "atlasvi.loaders.sources.source_protocol",
    "ingest": "atlasvi.loaders.ingestion.ingest",
    "IngestReport": "atlasvi.loaders.ingestion.ingest",
    "open_cells": "atlasvi.loaders.cells.open_cells",
    "Cells": "atlasvi.loaders.cells.cells_protocol",
    "CellData": "atlasvi.loaders.cells.open_cells",
    "CellStore": "atlasvi.loaders.cells.cell_store",
    "add_obs_columns": "atlasvi.loaders.cells.added_columns",
    "MemoryCells": "atlasvi.loaders.cells.memory_cells",
    "BatchLoader": "atlasvi.loaders.batches.loader",
    "DeviceFeeder": "atlasvi.loaders.batches.device_feeder",
    "Batch": "atlasvi.loaders.batches.batch",
    "AtlasviError": "atlasvi.loaders.errors",
    "Storage": "atlasvi.loaders.places.storage",
    "use_storage": "atlasvi.loaders.places.storage",
    "use_cache": "atlasvi.loaders.places.disk_cache",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
