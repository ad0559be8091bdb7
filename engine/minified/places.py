"""What a path holds, of all that atlasvi writes and of what scvi-tools minified. Torch is not imported."""

from pathlib import Path
from typing import Literal

from atlasvi.engine.minified.minified_store import is_minified_store, read_minify_type
from atlasvi.loaders.store_files import is_cell_store

Place = Literal["cell store", "minified store", "run", "model", "minified data"]


def name_place(path: str | Path) -> Place | None:
    """Which of these a path is; None for a source of counts, and for what is not there.

    run            finished or not
    model          a directory of a model, ours or one of scvi-tools
    minified data  an h5ad file or a Zarr folder that scvi-tools minified
    Raises SourceError for a file that can't be read.
    """
    if is_cell_store(path):
        return "cell store"
    if is_minified_store(path):
        return "minified store"
    if (Path(path) / "config.json").is_file():
        return "run"
    if (Path(path) / "model.pt").is_file():
        return "model"
    return None if read_minify_type(path) is None else "minified data"
