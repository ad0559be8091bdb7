"""Cells whose posterior was kept instead of their counts: the interface that all readers of minified data have."""

from collections.abc import Callable, Collection, Container
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from atlasvi.engine.model.covariates import Setup
from atlasvi.loaders.arrays.row_arrays import Chosen, split_rows
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.tables.frames import join_names

if TYPE_CHECKING:
    from atlasvi.engine.model.trained_run import TrainedRun

SLICE_CELLS = 2**16  # cells read at a time
MINIFIED = "_scvi_adata_minify_type"  # in uns: scvi-tools' mark of minified data
MINIFY_TYPE = "latent_posterior_parameters"  # its value if the counts were dropped
WITH_COUNTS = f"{MINIFY_TYPE}_with_counts"  # its value if they were kept beside the posterior
LIBRARY = "observed_lib_size"  # in obs
LATENTS = ("scvi_latent_qzm", "scvi_latent_qzv")  # in obsm
EMBEDDING = "X_umap"  # in obsm: two coordinates for each cell, under the name that scanpy gives to a UMAP
BEFORE_1_2 = {LIBRARY: f"_scvi_{LIBRARY}", **{name: f"_{name}" for name in LATENTS}}  # names of older scvi-tools


def find_name(names: Container[str], wanted: str) -> str | None:
    """`wanted`, or its name before scvi-tools 1.2, if one of them is in `names`; else None."""
    return next((name for name in (wanted, BEFORE_1_2[wanted]) if name in names), None)


def find_embedding(obsm: Any, n_cells: int) -> Any:
    """The array of coordinates in obsm (of an AnnData, an h5ad file or a Zarr folder); None if there is none.

    An array of that name with another shape, such as three coordinates, is none.
    """
    array = obsm.get(EMBEDDING)
    is_one = getattr(array, "shape", None) == (n_cells, 2) and getattr(array, "dtype", np.dtype(object)).kind == "f"
    return array if is_one else None


class ObsTable(Protocol):
    """obs, read by slices of rows; the library has the name LIBRARY here, whatever its name in the file."""

    columns: list[str]

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Names of cells [start, stop)."""

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of cells [start, stop), or of all. Raises ColumnError, with the columns of obs."""

    def take_names(self, rows: np.ndarray) -> pd.Index:
        """Names of the cells with these ascending int64 indices."""

    def take_column(self, name: str, rows: np.ndarray) -> pd.Series:
        """One column of the cells with these ascending int64 indices. Raises ColumnError, with the columns of obs."""


class KeptPosterior:
    """Mean and variance of q(z | x) of each cell, with obs and var; each subclass opens and checks one kind of data.

    latents    arrays of qzm and qzv [cells, latent], which are read by slices of rows
    embedding  array of coordinates [cells, 2], read likewise (see `find_embedding`); None if there is none
    """

    def __init__(
        self,
        path: str,
        n_cells: int,
        obs: ObsTable,
        var: pd.DataFrame,
        latents: tuple[Any, ...],
        n_latent: int,
        embedding: Any = None,
    ) -> None:
        self.path, self.n_cells, self.n_latent = path, n_cells, n_latent
        self.obs, self.var, self._latents, self._embedding = obs, var, latents, embedding

    @property
    def run(self) -> "TrainedRun":
        """The model that the cells were minified with. Raises SourceError if it is unknown."""
        raise SourceError(f"{self.path}: this needs the model that the data was minified with, which is not in it.")

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model uses, and the meaning of its codes. Raises the errors of `run`."""
        return self.run.setup

    @property
    def latents_dtype(self) -> np.dtype:
        """How the latents are stored; all that reads them gives float32."""
        return np.dtype(self._latents[0].dtype)

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of var."""
        return self.var.index

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs."""
        return self.obs.columns

    @property
    def has_embedding(self) -> bool:
        """Whether each cell has two coordinates, for `read_embedding`."""
        return self._embedding is not None

    def read_embedding(self, rows: Chosen | None = None) -> np.ndarray:
        """Two coordinates for each cell, float32 [cells, 2].

        rows  a slice, or ascending int64 indices; None: all cells
        Raises SourceError if there is no embedding.
        """
        if self._embedding is None:
            raise SourceError(
                f"{self.path}: obsm has no {EMBEDDING} with two coordinates a cell: make it, for a minified store, "
                "with: atlasvi embed MINI."
            )
        with reading(self.path):
            return self._read_coordinates(slice(None) if rows is None else rows).astype(np.float32, copy=False)

    def _read_coordinates(self, rows: Chosen) -> np.ndarray:
        if isinstance(rows, slice):
            return np.asarray(self._embedding[rows])
        parts = [np.asarray(self._embedding[:0])]
        for low, high in split_rows(rows, SLICE_CELLS):
            first = int(rows[low])
            parts.append(np.asarray(self._embedding[first : int(rows[high - 1]) + 1])[rows[low:high] - first])
        return np.concatenate(parts)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One obs column of cells [start, stop), or of all. Raises ColumnError, with the columns of obs."""
        return self.obs.read_column(name, start, stop)

    def read_names(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Names of cells [start, stop), or of all."""
        return self.obs.read_names(start, self.n_cells if stop is None else stop)

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""
        with reading(self.path):
            qzm, qzv = (np.asarray(array[start:stop], np.float32) for array in self._latents)
        return qzm, qzv

    def take_column(self, name: str, cells: np.ndarray) -> pd.Series:
        """One obs column of the cells with these ascending int64 indices. Raises ColumnError, with the columns."""
        return self.obs.take_column(name, cells)

    def take_names(self, cells: np.ndarray) -> pd.Index:
        """Names of the cells with these ascending int64 indices."""
        return self.obs.take_names(cells)

    def take_latent(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [cells, latent], of the cells with these ascending int64 indices."""
        parts = [self.read_latent(0, 0)]
        for low, high in split_rows(cells, SLICE_CELLS):
            first = int(cells[low])
            latents = self.read_latent(first, int(cells[high - 1]) + 1)
            parts.append((latents[0][cells[low:high] - first], latents[1][cells[low:high] - first]))
        qzm, qzv = (np.concatenate(values) for values in zip(*parts))
        return qzm, qzv

    def take_mean(self, cells: np.ndarray) -> np.ndarray:
        """qzm, float32 [cells, latent], of the cells with these ascending int64 indices."""
        return self.take_latent(cells)[0]

    def find_named(self, names: Collection[str]) -> tuple[np.ndarray, pd.Index]:
        """The cells with one of these names, all cells of a name that repeats: (ascending int64 indices, names)."""
        rows, found, wanted = [np.empty(0, np.int64)], list[pd.Index](), list(names)
        for start in range(0, self.n_cells, SLICE_CELLS):
            here = self.read_names(start, min(start + SLICE_CELLS, self.n_cells))
            hits = np.flatnonzero(here.isin(wanted))
            rows.append(start + hits)
            found.append(here[hits])
        return np.concatenate(rows), join_names(found)

    def check_model(self, run: "TrainedRun") -> None:
        """Raise SourceError if genes or latents show that these cells were minified with another model."""
        missing = pd.Index(run.genes).difference(self.genes, sort=False)
        if len(missing) or self.n_latent != run.model.n_latent:
            lacking = f", whose gene {missing[0]!r} is missing" if len(missing) else ""
            raise SourceError(
                f"{self.path}: it has {len(self.genes):,} genes and {self.n_latent} latent dimensions, the model has "
                f"{len(run.genes):,} and {run.model.n_latent}{lacking}: name the model that it was minified with."
            )


def check_known(path: str, known: np.ndarray, name_cell: Callable[[int], str]) -> None:
    """Raise SourceError if some cells have no latents or no library: they were joined to minified cells.

    known      bool [cells]: cells that have both
    name_cell  returns the name of one of these cells from its index among them
    """
    if not known.all():
        raise SourceError(
            f"{path}: it is minified, and {int((~known).sum()):,} cells have no latents (first: "
            f"{name_cell(int(np.argmin(known)))!r}): cells that were joined to minified ones must be minified too, or "
            "used separately."
        )
