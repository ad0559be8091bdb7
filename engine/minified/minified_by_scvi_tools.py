"""Data that scvi-tools minified, read like a minified store: latents in an h5ad or Zarr, and the model beside it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from atlasvi.engine.minified.kept_posterior import (
    LATENTS,
    LIBRARY,
    SLICE_CELLS,
    KeptPosterior,
    find_embedding,
    find_name,
)
from atlasvi.engine.minified.minified_store import MinifiedStore, open_root, read_minify_type
from atlasvi.engine.minified.places import name_place
from atlasvi.engine.model.run_files import MODEL
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.loaders.arrays.array_checks import check_group_codecs, check_stored
from atlasvi.loaders.arrays.row_arrays import split_rows
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.addresses import restore_address
from atlasvi.loaders.places.object_path import ObjectPath, to_place
from atlasvi.loaders.tables.anndata_tables import Table, open_table
from atlasvi.loaders.tables.frames import join_names
from atlasvi.loaders.tables.store_tables import check_column

log = logging.getLogger(__name__)


def open_minified(path: str | Path, model: TrainedRun | str | Path | None = None) -> "MinifiedStore | ScviMinified":
    """A minified store, or an h5ad or Zarr that scvi-tools minified, opened for reading by slices.

    model  for data of scvi-tools: a run, or a model directory of ours or theirs; None: the model.pt beside the data, if
           there is one; without a model, latents and obs can still be read
    Raises SourceError if the path holds neither, or is damaged.
    """
    if not to_place(path).exists() or (what := name_place(path)) == "minified store":
        return MinifiedStore(path)
    if what in ("cell store", "run", "model"):
        raise SourceError(
            f"{path} is a {what}, not minified data: make some with atlasvi minify RUN DATA --out MINI, or name a "
            "model and cells to use it with: atlasvi query RUN DATA ..."
        )
    return ScviMinified(path, model)


class ScviMinified(KeptPosterior):
    """The cells of data minified by scvi-tools, opened for reading by slices, like a MinifiedStore."""

    def __init__(self, path: str | Path | ObjectPath, model: TrainedRun | str | Path | None = None) -> None:
        self.path = restore_address(path)
        if (kind := read_minify_type(path)) is None:
            raise SourceError(
                f"{path} is not minified data: if it holds counts, name a model before it (atlasvi query RUN {path} "
                f"...), or minify it first (atlasvi minify RUN {path} --out MINI)."
            )
        self.kind = kind
        with reading(self.path):
            root = open_root(path)
            if isinstance(root, zarr.Group):
                check_group_codecs(root)
            for name in ("obs", "var", "obsm"):
                if zeros := check_stored(self.path, root, name):
                    log.warning("%s: chunks of %s are not stored: read as zeros.", self.path, ", ".join(zeros))
            obs, var = (open_table(self.path, name, root[name]) for name in ("obs", "var"))
            names = [find_name(root["obsm"], name) for name in LATENTS]
            if None in names:
                raise SourceError(f"{path}: obsm has no {LATENTS[names.index(None)]}: minify the data again.")
            latents = tuple(root["obsm"][name] for name in names)
            shapes = [array.shape for array in latents]
            if len(shapes[0]) != 2 or shapes[0][0] != obs.n_rows or shapes[0] != shapes[1]:
                raise SourceError(
                    f"{path} is damaged: {names[0]} and {names[1]} of obsm have the shapes {shapes[0]} and "
                    f"{shapes[1]} for {obs.n_rows:,} cells: copy it again, or minify the data again."
                )
            genes, embedding = var.read(0, var.n_rows), find_embedding(root["obsm"], obs.n_rows)
        super().__init__(self.path, obs.n_rows, _Obs(obs, self.path), genes, latents, shapes[0][1], embedding)
        place = to_place(path)
        if model is None and isinstance(place, Path) and (place.parent / MODEL).is_file():
            model = place.parent
        run = model if isinstance(model, TrainedRun) else None if model is None else open_model(model)
        if run is not None:
            self.check_model(run)
        self._run = run

    @property
    def has_model(self) -> bool:
        """Whether the model was named, or is beside the data."""
        return self._run is not None

    @property
    def run(self) -> TrainedRun:
        """The model that the data was minified with. Raises SourceError if it is neither named nor beside the data."""
        if self._run is None:
            raise SourceError(
                f"{self.path}: this needs the model that the data was minified with, and no {MODEL} is beside it: name "
                f"the model's directory: atlasvi query {self.path} --model DIR ..."
            )
        return self._run


class _Obs:
    """A table of an AnnData file with the interface of `TableReader`; the library has today's name here."""

    def __init__(self, table: Table, path: str) -> None:
        self._table, self._path, self.n_rows = table, path, table.n_rows
        there = find_name(table.columns, LIBRARY)
        self._stored = {LIBRARY if name == there else name: name for name in table.columns}  # name here -> in the file
        self.columns = list(self._stored)

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Cell names of rows [start, stop)."""
        with reading(self._path):
            return self._table.read_names(start, min(stop, self.n_rows))

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of rows [start, stop), or of all. Raises ColumnError, with the columns of obs."""
        check_column(name, self.columns, self._path)
        with reading(self._path):
            return self._table.read_column(self._stored[name], start, self.n_rows if stop is None else stop)

    def take_names(self, rows: np.ndarray) -> pd.Index:
        """Cell names of the rows with these ascending int64 indices."""
        parts = [self.read_names(first, last + 1)[here] for first, last, here in _spans(rows)]
        return join_names(parts)

    def take_column(self, name: str, rows: np.ndarray) -> pd.Series:
        """One column of the rows with these ascending int64 indices. Raises ColumnError, with the columns of obs."""
        parts = [self.read_column(name, first, last + 1).iloc[here] for first, last, here in _spans(rows)]
        return pd.concat(parts or [self.read_column(name, 0, 0)], ignore_index=True)


def _spans(rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(first, last, indices counted from the first) of the rows that are read at a time."""
    for low, high in split_rows(rows, SLICE_CELLS):
        yield int(rows[low]), int(rows[high - 1]), rows[low:high] - rows[low]
