"""Two coordinates for each cell, written into a finished minified store as obsm['X_umap'].

They are written to a scratch folder inside the store and moved to their place as a whole. A kill leaves the store as it
was, or without the coordinates that it had.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from atlasvi.engine.minified.kept_posterior import EMBEDDING, LATENTS
from atlasvi.engine.minified.minified_store import MinifiedStore, choose_inner_rows
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.manifest import changing
from atlasvi.loaders.outputs import explain_full_disk, lock_folder, publish
from atlasvi.loaders.places.object_path import need_local
from atlasvi.loaders.tables.store_tables import AppendedArray, consolidate_metadata

SCRATCH = ".embedding.unfinished"  # folder inside the store
INNER_ROWS = 4096  # cells of an inner chunk: 32 kB


@contextmanager
def writing_embedding(
    store: MinifiedStore, made_by: Mapping[str, Any], replace: bool = False
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends coordinates, float32 [any number of cells, 2]; after the block, all are in place.

    made_by  plain values that say how they were made, kept as attributes of the array
    replace  whether coordinates that are there may be replaced
    On any error in the block the store stays as it was. A store that is open shows them after it is opened again.
    Raises OutputError if there are coordinates and `replace` is false, if another process is changing the store, or if
    it can't be written.
    """
    path = need_local(store.path, "coordinates are written")
    place, scratch = path / "obsm" / EMBEDDING, path / SCRATCH
    with explain_full_disk(path), lock_folder(path, "changing it: wait for it."):
        check_no_embedding(path, replace)
        try:
            shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left
            scratch.mkdir()
        except OSError as error:
            raise OutputError(f"{path}: can't be written to ({error.strerror}): ask its owner, or copy it.") from error
        try:
            group = zarr.open_group(scratch, mode="w", zarr_format=3)
            rows, coordinates = _count_file_rows(path), np.dtype(np.float32)
            inner = choose_inner_rows(rows, INNER_ROWS)
            array = AppendedArray(group, EMBEDDING, store.n_cells, coordinates, (2,), rows, inner, compressed=False)
            group[EMBEDDING].attrs["atlasvi"] = dict(made_by)
            yield array.append
            if array.n_appended != store.n_cells:
                raise ValueError(f"{array.n_appended:,} of {store.n_cells:,} cells have coordinates")
            with changing(path, lambda name: name == "zarr.json" or name.startswith(f"obsm/{EMBEDDING}/")):
                shutil.rmtree(place, ignore_errors=True)
                publish(scratch / EMBEDDING, place)
                shutil.rmtree(scratch)
                consolidate_metadata(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_no_embedding(path: Path, replace: bool = False) -> None:
    """Raise OutputError if a store has coordinates that may not be replaced."""
    if (path / "obsm" / EMBEDDING).exists() and not replace:
        raise OutputError(f"{path}: obsm has {EMBEDDING} already: keep it, or make it anew (--replace, replace=True).")


def _count_file_rows(path: Path) -> int:
    """Cells in a file of the store's other arrays."""
    root: Any = zarr.open_group(path, mode="r", use_consolidated=False)
    latents = root[f"obsm/{LATENTS[0]}"]
    return (latents.shards or latents.chunks)[0]
