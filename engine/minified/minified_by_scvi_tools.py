"""Data that scvi-tools minified, asked like a minified store: latents in an h5ad or Zarr, the model beside it."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from atlasvi.engine.minified.minified_store import LIBRARY, MINIFIED, MinifiedStore, is_minified_store, open_root
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import CONFIG, MODEL, TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.loaders.arrays.array_checks import check_group_codecs, check_stored
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.store_files import is_cell_store
from atlasvi.loaders.tables.anndata_tables import Table, open_table, read_text, to_str
from atlasvi.loaders.tables.store_tables import check_column

log = logging.getLogger(__name__)

LATENTS = ("scvi_latent_", "_scvi_latent_")  # the second before scvi-tools 1.2
LIBRARIES = (LIBRARY, f"_scvi_{LIBRARY}")


def open_minified(path: str | Path, model: TrainedRun | str | Path | None = None) -> "MinifiedStore | ScviMinified":
    """A minified store, or an h5ad or Zarr that scvi-tools minified, opened for reading by slices.

    model  of scvi-tools' data: a run, or a directory of ours or theirs; None: the one whose model.pt lies beside it,
           without which all but the model can be asked
    Raises SourceError if it is neither, or is damaged.
    """
    if is_minified_store(path) or not Path(path).exists():
        return MinifiedStore(path)
    if (what := _name_other(Path(path))) is not None:
        raise SourceError(f"{path} is {what}, and no minified data: make some with atlasvi minify RUN DATA --out MINI.")
    return ScviMinified(path, model)


def _name_other(path: Path) -> str | None:
    """What else of ours `path` is; None if it is none of that."""
    if (path / CONFIG).is_file():
        return "a run"
    if (path / MODEL).is_file():
        return "a model"
    return "a cell store" if is_cell_store(path) else None


class ScviMinified:
    """The cells of minified data of scvi-tools; see MinifiedStore, which answers the same calls."""

    def __init__(self, path: str | Path, model: TrainedRun | str | Path | None = None) -> None:
        self.path = str(path)
        with reading(self.path):
            root = open_root(path)
            uns = root.get("uns", {})
            if MINIFIED not in uns:
                raise SourceError(f"{path} is no minified data (make some with: atlasvi minify RUN DATA --out MINI).")
            if isinstance(root, zarr.Group):
                check_group_codecs(root)
            self.kind = to_str(read_text(uns[MINIFIED]))
            for name in ("obs", "var", "obsm"):
                if zeros := check_stored(self.path, root, name):
                    log.warning("%s: chunks are not stored of %s: taken for zeros.", self.path, ", ".join(zeros))
            obs, var = (open_table(self.path, name, root[name]) for name in ("obs", "var"))
            self.obs, self.n_cells = _Obs(obs, self.path), obs.n_rows
            self.var: pd.DataFrame = var.read(0, var.n_rows)
            prefix = next((name for name in LATENTS if f"{name}qzm" in root["obsm"]), None)
            if prefix is None:
                raise SourceError(f"{path}: obsm has no {LATENTS[0]}qzm: minify the data anew.")
            self._latents: tuple[Any, ...] = tuple(root["obsm"][f"{prefix}{name}"] for name in ("qzm", "qzv"))
            shapes = [latents.shape for latents in self._latents]
            if len(shapes[0]) != 2 or shapes[0][0] != self.n_cells or shapes[0] != shapes[1]:
                raise SourceError(
                    f"{path} is damaged: {prefix}qzm and {prefix}qzv of obsm have the shapes {shapes[0]} and "
                    f"{shapes[1]} for {self.n_cells:,} cells: copy it again, or minify the data anew."
                )
        self.n_latent: int = shapes[0][1]
        if model is None and (Path(path).parent / MODEL).is_file():
            model = Path(path).parent
        run = model if isinstance(model, TrainedRun) else None if model is None else open_model(model)
        if run is not None and (
            run.genes != [str(gene) for gene in self.var.index] or run.model.n_latent != self.n_latent
        ):
            raise SourceError(
                f"{path}: it has {len(self.var):,} genes and {self.n_latent} latent dimensions, the model has "
                f"{len(run.genes):,} and {run.model.n_latent}, or other genes: name the model it was minified with."
            )
        self._run = run

    @property
    def has_model(self) -> bool:
        """Whether the model was named, or lies beside the data."""
        return self._run is not None

    @property
    def run(self) -> TrainedRun:
        """The model that the data was minified with. Raises SourceError if it was not named and is not beside it."""
        if self._run is None:
            raise SourceError(
                f"{self.path}: this needs the model that it was minified with, and no {MODEL} lies beside it: name the "
                f"model's directory: atlasvi query {self.path} --model DIR ..."
            )
        return self._run

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the model."""
        return self.var.index

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model takes, and what its codes stand for."""
        return self.run.setup

    def model(self) -> VAE:
        """The model, ready to decode."""
        return self.run.model

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs."""
        return self.obs.columns

    def read_column(self, name: str) -> pd.Series:
        """One obs column of all cells. Raises ColumnError, naming those that are there."""
        return self.obs.read_column(name)

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""
        with reading(self.path):
            qzm, qzv = (np.asarray(array[start:stop], np.float32) for array in self._latents)
        return qzm, qzv


class _Obs:
    """A table of an AnnData file by the calls of `TableReader`; the library goes by one name whatever the version."""

    def __init__(self, table: Table, path: str) -> None:
        self._table, self._path, self.n_rows = table, path, table.n_rows
        self.columns = list(self._rename(table.read(0, 0)).columns)

    def _rename(self, obs: pd.DataFrame) -> pd.DataFrame:
        return obs if LIBRARY in obs else obs.rename(columns={LIBRARIES[1]: LIBRARY})

    def read(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop), all columns; the index holds cell names."""
        with reading(self._path):
            return self._rename(self._table.read(start, min(stop, self.n_rows)))

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Cell names of rows [start, stop)."""
        return self.read(start, stop).index

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of rows [start, stop), or of all. Raises ColumnError, naming those that are there."""
        check_column(name, self.columns, self._path)
        return self.read(start, self.n_rows if stop is None else stop)[name].reset_index(drop=True)
