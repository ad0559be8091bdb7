"""What kind of our own files, or of scvi-tools', a path holds. Does not import torch."""

from pathlib import Path
from typing import Literal

from atlasvi.engine.minified.minified_store import is_minified_store, read_minify_type
from atlasvi.engine.model.run_files import CONFIG, MODEL
from atlasvi.loaders.places.object_path import ObjectPath, to_place
from atlasvi.loaders.store_files import is_cell_store

Place = Literal["cell store", "minified store", "run", "model", "minified data"]


def name_place(path: str | Path | ObjectPath) -> Place | None:
    """The kind of a path; None for a source of counts, and for a path that does not exist.

    run            finished or not
    model          a model directory, ours or scvi-tools'
    minified data  an h5ad file or a Zarr folder that scvi-tools minified
    Raises SourceError for a file that can't be read.
    """
    if is_cell_store(path):
        return "cell store"
    if is_minified_store(path):
        return "minified store"
    place = to_place(path)
    if (place / CONFIG).is_file():
        return "run"
    if (place / MODEL).is_file():
        return "model"
    return None if read_minify_type(path) is None else "minified data"
