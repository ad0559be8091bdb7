"""atlasvi.loaders: counts on disk -> sparse minibatches. In the order in which data meets it:

open_source      any file of counts, read by slices of rows      sources.py (anndata_files, tenx, soma)
ingest           sources -> a cell store, shuffled out of core   ingestion.py
open_cells       a cell store, or a source, as blocks of cells   cells.py, cell_store.py
add_obs_columns  columns made after a store was, into its obs    added_columns.py
MemoryCells      an AnnData in memory, as such blocks            memory.py
BatchLoader      cells -> minibatches, for any PyTorch model     loader.py (plan, selection, decoding, rows, buffers)
DeviceFeeder     minibatches -> a GPU, ahead of the model        feeder.py
Batch            one minibatch: CSR counts, library, covariates  batch.py
AtlasviError     what a user can mend, in a sentence             errors.py

Nothing is imported before it is used: ingest runs without torch.
"""

import importlib
from typing import Any

import atlasvi.loaders.numba_cache  # noqa: F401

_PLACES = {
    "open_source": "sources",
    "Source": "sources",
    "ingest": "ingestion",
    "IngestReport": "ingestion",
    "open_cells": "cells",
    "CellData": "cells",
    "CellStore": "cell_store",
    "add_obs_columns": "added_columns",
    "MemoryCells": "memory",
    "BatchLoader": "loader",
    "DeviceFeeder": "feeder",
    "Batch": "batch",
    "AtlasviError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
