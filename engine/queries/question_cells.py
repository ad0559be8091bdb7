"""The cells that a question is asked about: counts, encoded as they are read, or a posterior that was kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.minified.minified_store import LIBRARY
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.noise import draw_normal
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.minified_queries import QueryError
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.memory_cells import MemoryCells
from atlasvi.loaders.cells.open_cells import CellData, select_genes

BATCH_SIZE = 1024
SLICE_CELLS = 2**14  # of a minified store are read at a time
NAME_SLICE = 2**16


@dataclass
class Posterior:
    """A minibatch of cells as the model knows them, on its device.

    qzm, qzv  float32 [cells, latent]: mean and variance of q(z | x)
    library   float32 [cells], counts a cell
    codes     covariates, as `Batch.codes`
    qlm, qlv  float32 [cells]: mean and variance of q(log library | x), None where the library is observed
    counts    the counts, None where only the posterior was kept
    """

    qzm: Tensor
    qzv: Tensor
    library: Tensor
    codes: dict[str, Tensor]
    qlm: Tensor | None = None
    qlv: Tensor | None = None
    counts: Batch | None = None

    def __len__(self) -> int:
        return len(self.library)

    def draw(self, model: VAE, generator: Generator, n_samples: int = 1) -> tuple[Tensor, Tensor]:
        """z [cells, latent] and library [cells]; with several samples [samples, cells, ...]."""
        normal, library = self.draw_normal(generator, n_samples)
        return model.to_latent(normal), library

    def draw_normal(self, generator: Generator, n_samples: int = 1) -> tuple[Tensor, Tensor]:
        """The same with z before the softmax that makes it ln."""
        several = (n_samples,) if n_samples > 1 else ()

        def draw(mean: Tensor, variance: Tensor) -> Tensor:
            mean, scale = mean.expand(*several, *mean.shape), variance.sqrt()
            return mean + scale * draw_normal(mean, generator)

        normal = draw(self.qzm, self.qzv)
        if self.qlm is None or self.qlv is None:
            return normal, self.library.expand(*several, len(self))
        return normal, draw(self.qlm, self.qlv).exp()


class AskedCells(Protocol):
    """Cells with covariates and, minibatch by minibatch, what the model knows of them."""

    path: str
    n_cells: int
    obs_columns: list[str]

    def read_column(self, name: str) -> pd.Series:
        """One `obs` column of all cells. Raises ColumnError, naming those that are there."""

    def read_names(self) -> pd.Index:
        """Names of all cells."""

    def read_posteriors(self, model: VAE, cells: np.ndarray | None, batch_size: int) -> Iterator[Posterior]:
        """What the model knows of the cells with these numbers (ascending, each once; None: all), in their order."""


class CountedCells:
    """Cells whose counts are there: in a cell store, any source, an AnnData in memory.

    source  the cells as they were opened; data  the same over the genes of the model
    """

    def __init__(self, data: CellData, genes: list[str], setup: Setup) -> None:
        self.source, self.data = data, select_genes(data, genes)
        self.path, self.n_cells, self.obs_columns, self._setup = data.path, data.n_cells, data.obs_columns, setup
        self.read_column = data.read_column
        self._codes: dict[str, np.ndarray] | None = None

    def read_names(self) -> pd.Index:
        """Names of all cells."""
        if isinstance(self.source, MemoryCells):
            return self.source.read_names()
        slices = [self.data.read_obs(at, at + NAME_SLICE).index for at in range(0, self.n_cells, NAME_SLICE)]
        return slices[0].append(slices[1:])

    def read_batches(
        self, model: VAE, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[Batch]:
        """Counts of the cells with these numbers, in their order, on the device of the model."""
        if self._codes is None:
            self._codes = self._setup.read_codes(self.data, labels=model.settings.dispersion == "gene-label")
        loader = BatchLoader(
            self.data, batch_size, seed=0, codes=self._codes, cells=_mark(cells, self.n_cells), shuffle=False
        )
        yield from DeviceFeeder(loader, model.encoder.mean.weight.device)

    def read_posteriors(
        self, model: VAE, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[Posterior]:
        """What the model knows of the cells with these numbers, in their order."""
        for batch in self.read_batches(model, cells, batch_size):
            qzm, qzv = model.encode(batch)
            qlm, qlv = model.encode_library(batch) if model.settings.has_latent_library else (None, None)
            yield Posterior(qzm, qzv, batch.library, batch.codes, qlm, qlv, batch)


class KeptPosterior(Protocol):
    """Where posteriors were kept: a minified store, or a minified AnnData."""

    path: str
    n_cells: int

    @property
    def obs_columns(self) -> list[str]:
        """Columns of obs."""

    def read_column(self, name: str) -> pd.Series:
        """One `obs` column of all cells."""

    def read_names(self) -> pd.Index:
        """Names of all cells."""

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""


class MinifiedCells:
    """Cells whose counts are gone."""

    def __init__(self, kept: KeptPosterior, setup: Setup) -> None:
        self.kept, self._setup = kept, setup
        self.path, self.n_cells, self.obs_columns = kept.path, kept.n_cells, kept.obs_columns
        self.read_column = kept.read_column

    def read_names(self) -> pd.Index:
        """Names of all cells."""
        return self.kept.read_names()

    def read_posteriors(
        self, model: VAE, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[Posterior]:
        """What was kept of the cells with these numbers, in their order."""
        device = model.encoder.mean.weight.device
        codes = self._setup.read_codes(self.kept, labels=model.settings.dispersion == "gene-label")
        library = self.kept.read_column(LIBRARY).to_numpy(np.float32)
        for start in range(0, self.n_cells, SLICE_CELLS):
            stop = min(start + SLICE_CELLS, self.n_cells)
            here = np.arange(start, stop)
            if cells is not None:
                here = cells[np.searchsorted(cells, start) : np.searchsorted(cells, stop)]
                if not len(here):
                    continue
            latent = self.kept.read_latent(start, stop)
            for at in range(0, len(here), batch_size):
                part = here[at : at + batch_size]
                qzm, qzv = (torch.from_numpy(values[part - start]).to(device) for values in latent)
                yield Posterior(
                    qzm,
                    qzv,
                    torch.from_numpy(library[part]).to(device),
                    {name: torch.from_numpy(values[part]).to(device) for name, values in codes.items()},
                )


def need_counts(cells: AskedCells, question: str) -> CountedCells:
    """The cells, whose counts a question needs. Raises QueryError where they are gone."""
    if not isinstance(cells, CountedCells):
        raise QueryError(f"{cells.path}: {question} needs the counts, and minified data has none: ask the full data.")
    return cells


def number_cells(indices: Any, n_cells: int, path: str) -> np.ndarray:
    """int64 numbers of the cells asked for by a list of numbers or a mask; None means all.

    Raises QueryError if a number is outside, or a mask is of another length.
    """
    if indices is None:
        return np.arange(n_cells)
    numbers = np.asarray(indices).ravel()
    if numbers.dtype == bool:
        if len(numbers) != n_cells:
            raise QueryError(f"{path}: the mask has {len(numbers):,} values for {n_cells:,} cells: give one a cell.")
        return np.flatnonzero(numbers)
    if len(numbers) and numbers.dtype.kind not in "iu":
        raise QueryError(
            f"{path}: cells are asked for by their numbers or a mask, not by {numbers[0]!r}: "
            "adata.obs_names.get_indexer(names) gives the numbers of names."
        )
    numbers = numbers.astype(np.int64)
    if len(numbers) and not (numbers.min() >= -n_cells and numbers.max() < n_cells):
        raise QueryError(f"{path}: there is no cell {numbers[np.argmax(np.abs(numbers))]}: it has {n_cells:,}.")
    return numbers % max(n_cells, 1)


def in_order(numbers: np.ndarray, n_cells: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What to read for cells in any order, some maybe twice: (numbers ascending, None for all; where each one is).

    The places are None if they are in order already.
    """
    unique, places = np.unique(numbers, return_inverse=True)
    if len(unique) == len(numbers) and (places == np.arange(len(places))).all():
        return (None if len(unique) == n_cells else unique), None
    return unique, places


def _mark(cells: np.ndarray | None, n_cells: int) -> np.ndarray | None:
    if cells is None:
        return None
    mask = np.zeros(n_cells, bool)
    mask[cells] = True
    return mask
