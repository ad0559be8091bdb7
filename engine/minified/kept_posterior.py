"""Cells whose posterior was kept in place of their counts: what every reader of minified data answers."""

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from atlasvi.engine.model.covariates import Setup
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError

if TYPE_CHECKING:
    from atlasvi.engine.model.trained_run import TrainedRun

MINIFIED = "_scvi_adata_minify_type"  # in uns: how scvi-tools marks minified data
MINIFY_TYPE = "latent_posterior_parameters"  # its value where the counts are gone
WITH_COUNTS = f"{MINIFY_TYPE}_with_counts"  # and where they were kept beside the posterior
LIBRARY = "observed_lib_size"  # in obs
LATENTS = ("scvi_latent_qzm", "scvi_latent_qzv")  # in obsm
BEFORE_1_2 = {LIBRARY: f"_scvi_{LIBRARY}", **{name: f"_{name}" for name in LATENTS}}  # names of older scvi-tools


def find_name(names: Container[str], wanted: str) -> str | None:
    """`wanted` or the name that it had before scvi-tools 1.2, whichever is among `names`; None if neither is."""
    return next((name for name in (wanted, BEFORE_1_2[wanted]) if name in names), None)


class ObsTable(Protocol):
    """obs, read by slices of rows; the library goes by the name LIBRARY whatever it is called in the file."""

    columns: list[str]

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Names of cells [start, stop)."""

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of cells [start, stop), or of all. Raises ColumnError, naming those that are there."""


class KeptPosterior:
    """Mean and variance of q(z | x) of each cell, with obs and var; a subclass opens and checks one kind of data.

    latents  arrays of qzm and qzv [cells, latent], sliced by rows when they are read
    """

    def __init__(
        self, path: str, n_cells: int, obs: ObsTable, var: pd.DataFrame, latents: tuple[Any, ...], n_latent: int
    ) -> None:
        self.path, self.n_cells, self.n_latent = path, n_cells, n_latent
        self.obs, self.var, self._latents = obs, var, latents

    @property
    def run(self) -> "TrainedRun":
        """The model that the cells were minified with. Raises SourceError where it is not known."""
        raise SourceError(f"{self.path}: this needs the model that it was minified with, and it does not hold one.")

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model takes, and what its codes stand for. Raises what `run` raises."""
        return self.run.setup

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of var."""
        return self.var.index

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs."""
        return self.obs.columns

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One obs column of cells [start, stop), or of all. Raises ColumnError, naming those that are there."""
        return self.obs.read_column(name, start, stop)

    def read_names(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Names of cells [start, stop), or of all."""
        return self.obs.read_names(start, self.n_cells if stop is None else stop)

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""
        with reading(self.path):
            qzm, qzv = (np.asarray(array[start:stop], np.float32) for array in self._latents)
        return qzm, qzv

    def check_model(self, run: "TrainedRun") -> None:
        """Raise SourceError for a model that these cells were not minified with, as far as genes and latents tell."""
        missing = pd.Index(run.genes).difference(self.genes, sort=False)
        if len(missing) or self.n_latent != run.model.n_latent:
            lacking = f", whose gene {missing[0]!r} is missing" if len(missing) else ""
            raise SourceError(
                f"{self.path}: it has {len(self.genes):,} genes and {self.n_latent} latent dimensions, the model has "
                f"{len(run.genes):,} and {run.model.n_latent}{lacking}: name the model that it was minified with."
            )


def check_known(path: str, known: np.ndarray, name_cell: Callable[[int], str]) -> None:
    """Raise SourceError if some cells have no latents or no library: they were joined to minified ones.

    known      bool [cells]
    name_cell  the name of one of these cells, by its place among them
    """
    if not known.all():
        raise SourceError(
            f"{path}: it is minified, and {int((~known).sum()):,} cells have no latents (first: "
            f"{name_cell(int(np.argmin(known)))!r}): cells that were joined to minified ones must be minified too, or "
            "asked apart from them."
        )
