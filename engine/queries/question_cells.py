"""The cells that a question is about: with counts, which are encoded when read, or with a kept posterior."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.minified.kept_posterior import LIBRARY, KeptPosterior, check_known
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.noise import LATENT_STREAM, LIBRARY_STREAM, draw_normal
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.obs_rows import ObsRows
from atlasvi.kernels import draw_normals
from atlasvi.loaders.batches.batch import Batch, to_tensor
from atlasvi.loaders.batches.cell_mask import CellMask
from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.open_cells import CellData, select_genes
from atlasvi.loaders.errors import AtlasviError

BATCH_SIZE = 1024
SLICE_CELLS = 2**14  # cells whose kept posteriors are read at a time
CODES_CELLS = 2**16  # cells whose covariates are read at a time


class QueryError(AtlasviError, ValueError):
    """A question that these cells or this model can't answer."""


@dataclass
class Posterior:
    """A minibatch of cells, encoded by the model, on its device.

    qzm, qzv  float32 [cells, latent]: mean and variance of q(z | x)
    library   float32 [cells], counts per cell
    codes     covariates, as in `Batch.codes`
    qlm, qlv  float32 [cells]: mean and variance of q(log library | x); None if the library is observed
    counts    the counts; None if only the posterior was kept
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

    def check_library(self, model: VAE) -> None:
        """Raise QueryError if the model infers library sizes from counts, and only the posterior of z was kept."""
        if model.settings.has_latent_library and self.qlm is None:
            raise QueryError(
                "This model infers the library size of a cell from its counts, and minified data does not keep it: use "
                "the data with the counts (atlasvi query MINI DATA ...), or a question that needs no library size, "
                "such as expression at a library size of 10000."
            )

    def mean(self, model: VAE) -> tuple[Tensor, Tensor]:
        """The latent at the mean of q(z | x) [cells, latent], and the mean of the library [cells]."""
        library = self.library
        if self.qlm is not None and self.qlv is not None:
            library = (self.qlm + self.qlv / 2).exp()
        return model.to_latent(self.qzm), library

    def draw(self, model: VAE, generator: Generator, n_samples: int = 1) -> tuple[Tensor, Tensor]:
        """z [cells, latent] and library [cells]; with several samples [samples, cells, ...]."""
        normal, library = self.draw_normal(generator, n_samples)
        return model.to_latent(normal), library

    def draw_normal(self, generator: Generator, n_samples: int = 1) -> tuple[Tensor, Tensor]:
        """The same, with z before the softmax of ln latents."""
        several = (n_samples,) if n_samples > 1 else ()

        def draw(mean: Tensor, variance: Tensor) -> Tensor:
            mean, scale = mean.expand(*several, *mean.shape), variance.sqrt()
            return mean + scale * draw_normal(mean, generator)

        normal = draw(self.qzm, self.qzv)
        if self.qlm is None or self.qlv is None:
            return normal, self.library.expand(*several, len(self))
        return normal, draw(self.qlm, self.qlv).exp()

    def draw_numbered(self, model: VAE, seed: int, cells: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """z [cells, latent] and library [cells] in a draw, a function of seed, draw and each cell's number alone.

        cells  int64 [cells], the numbers, on the device of the posterior
        """

        def draw_normal_at(mean: Tensor, variance: Tensor, stream: int) -> Tensor:
            normal = draw_normals(seed, cells, draw, mean.shape[1], stream).to(mean.dtype)
            return mean + variance.sqrt() * normal

        z = model.to_latent(draw_normal_at(self.qzm, self.qzv, LATENT_STREAM))
        if self.qlm is None or self.qlv is None:
            return z, self.library
        return z, draw_normal_at(self.qlm[:, None], self.qlv[:, None], LIBRARY_STREAM)[:, 0].exp()


class QuestionCells(Protocol):
    """Cells with covariates and names and, by minibatch, their posterior.

    Cells are chosen by ascending int64 indices without repeats; None chooses all.
    """

    path: str
    n_cells: int
    obs_columns: list[str]

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One `obs` column of cells [start, stop), or of all. Raises ColumnError, with the columns of obs."""

    def read_names(self, cells: np.ndarray | None = None) -> pd.Index:
        """Names of the cells with these indices, in any order; None: of all cells."""

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model uses. Raises SourceError if there is no model."""

    def take_column(self, name: str, cells: np.ndarray) -> pd.Series:
        """Values of one column [len(cells)] of the cells with these indices, in any order."""

    def find_named(self, names: Collection[str]) -> tuple[np.ndarray, pd.Index]:
        """The cells with one of these names, all cells of a name that repeats: (ascending int64 indices, names)."""

    def read_codes(self, setup: Setup, cells: np.ndarray, labels: bool = False) -> dict[str, np.ndarray]:
        """Covariates of the cells with these indices, in any order, as from `Setup.read_codes`."""

    def read_latents(
        self, model: VAE | None, cells: np.ndarray | None, batch_size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """qzm and qzv of the chosen cells, float32 [cells, latent], in slices, in their order.

        model  may be None if the posterior was kept
        """

    def read_posteriors(
        self, model: VAE, cells: np.ndarray | None, batch_size: int, means: bool = False
    ) -> Iterator[Posterior]:
        """The posterior of the chosen cells, in their order.

        means  whether only qzm will be used: qzv may then be NaN, which saves reading it
        """


class CountedCells(ObsRows):
    """Cells that have counts: in a cell store, in any source, or in an AnnData in memory.

    source  the cells as they were opened
    data    the same cells, with the genes of the model
    """

    def __init__(self, data: CellData, genes: list[str], setup: Setup) -> None:
        super().__init__(data)
        self.source, self.data, self._setup = data, select_genes(data, genes), setup

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model uses."""
        return self._setup

    def read_batches(
        self, model: VAE, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[Batch]:
        """Counts of the chosen cells, in their order, on the model's device."""
        device, labels = model.encoder.mean.weight.device, model.settings.uses_labels
        mask = None if cells is None else CellMask.from_indices(cells, self.n_cells)
        loader = BatchLoader(self.data, batch_size, seed=0, cells=mask, shuffle=False)
        step = max(CODES_CELLS // batch_size, 1) * batch_size  # all minibatches but the last are full
        at, codes = 0, dict[str, np.ndarray]()
        for batch in DeviceFeeder(loader, device):
            if at % step == 0:
                codes = self.read_codes(self.setup, take_chosen(cells, at, min(at + step, loader.n_cells)), labels)
            here = slice(at % step, at % step + len(batch))
            at += len(batch)
            covariates = {name: to_tensor(values[here]).to(device) for name, values in codes.items()}
            yield replace(batch, codes=covariates, memory=None)

    @torch.inference_mode()
    def read_latents(
        self, model: VAE | None, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """qzm and qzv of the chosen cells, float32 [cells, latent], a minibatch at a time, in their order."""
        assert model is not None, "a model is needed to encode counts"
        for batch in self.read_batches(model, cells, batch_size):
            qzm, qzv = model.encode(batch)
            yield qzm.cpu().numpy(), qzv.cpu().numpy()

    @torch.inference_mode()
    def read_posteriors(
        self, model: VAE, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE, means: bool = False
    ) -> Iterator[Posterior]:
        """The posterior of the chosen cells, in their order."""
        for batch in self.read_batches(model, cells, batch_size):
            qzm, qzv = model.encode(batch)
            qlm, qlv = model.encode_library(batch) if model.settings.has_latent_library else (None, None)
            yield Posterior(qzm, qzv, batch.library, batch.codes, qlm, qlv, batch)


class MinifiedCells(ObsRows):
    """Cells without counts, whose posterior was kept.

    setup  the setup of the model in use; None: that of the model that the cells were minified with
    """

    def __init__(self, kept: KeptPosterior, setup: Setup | None = None) -> None:
        super().__init__(kept)
        self.kept, self._setup = kept, setup

    @property
    def setup(self) -> Setup:
        """The columns of obs that the model uses. Raises SourceError if there is no model."""
        return self.kept.setup if self._setup is None else self._setup

    def read_latents(
        self, model: VAE | None = None, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """qzm and qzv of the chosen cells, float32 [cells, latent], in slices, in their order."""
        for _, qzm, qzv in self._read_slices(cells):
            yield qzm, qzv

    def read_posteriors(
        self, model: VAE, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE, means: bool = False
    ) -> Iterator[Posterior]:
        """The kept posterior of the chosen cells, in their order; with `means`, qzv of chosen cells is NaN."""
        device, labels, setup = model.encoder.mean.weight.device, model.settings.uses_labels, self.setup
        for here, qzm, qzv in self._read_slices(cells, means):
            codes = self.read_codes(setup, here, labels)
            library = np.array(self.take_column(LIBRARY, here), np.float32)  # pandas 3 gives arrays that are read-only
            self._check_known(here, np.isfinite(library))
            for at in range(0, len(here), batch_size):
                part = slice(at, at + batch_size)
                mean, variance, sizes = (torch.from_numpy(values[part]).to(device) for values in (qzm, qzv, library))
                covariates = {name: to_tensor(values[part]).to(device) for name, values in codes.items()}
                yield Posterior(mean, variance, sizes, covariates)

    def find_named(self, names: Collection[str]) -> tuple[np.ndarray, pd.Index]:
        """The cells that have one of these names: (ascending int64 indices, names); a store has an index of names."""
        return self.kept.find_named(names)

    def _take(self, name: str | None, cells: np.ndarray) -> pd.Series:
        wanted, places = (cells, None) if (cells[1:] > cells[:-1]).all() else np.unique(cells, return_inverse=True)
        taken = pd.Series(self.kept.take_names(wanted)) if name is None else self.kept.take_column(name, wanted)
        return taken if places is None else taken.iloc[places].reset_index(drop=True)

    def _read_slices(
        self, cells: np.ndarray | None, means: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """SLICE_CELLS of the chosen cells at a time: their indices, and their qzm and qzv."""
        for at in range(0, self.n_cells if cells is None else len(cells), SLICE_CELLS):
            here = take_chosen(cells, at, min(at + SLICE_CELLS, self.n_cells))
            if cells is None:
                qzm, qzv = self.kept.read_latent(at, at + len(here))
            elif means:
                qzm = self.kept.take_mean(here)
                qzv = np.full_like(qzm, np.nan)
            else:
                qzm, qzv = self.kept.take_latent(here)
            self._check_known(here, np.isfinite(qzm).all(1))
            yield here, qzm, qzv

    def _check_known(self, cells: np.ndarray, known: np.ndarray) -> None:
        check_known(self.path, known, lambda place: str(self.read_names(cells[[place]])[0]))


def take_chosen(cells: np.ndarray | None, start: int, stop: int) -> np.ndarray:
    """int64: indices of the chosen cells number start to stop (None: all cells are chosen)."""
    return np.arange(start, stop) if cells is None else cells[start:stop]


def name_cells(
    cells: QuestionCells, chosen: np.ndarray | None, parts: Iterator[np.ndarray]
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """Values of the chosen cells, in slices, with their names, which are read for many slices at a time."""
    n_chosen, at = cells.n_cells if chosen is None else len(chosen), 0
    first, names = 0, pd.Index([], dtype=object)
    for values in parts:
        stop = at + len(values)
        if stop > first + len(names):
            first, names = at, cells.read_names(take_chosen(chosen, at, min(max(stop, at + SLICE_CELLS), n_chosen)))
        yield names[at - first : stop - first], values
        at = stop


def need_at_least(least: int, **given: int | None) -> None:
    """Raise QueryError if one of these numbers, by the name of its argument, is smaller; None stands for a default."""
    for name, number in given.items():
        if number is not None and not number >= least:
            raise QueryError(f"{name} is {number}: it must be at least {least}.")


def need_counts(cells: QuestionCells, question: str) -> CountedCells:
    """The cells, for a question that needs counts. Raises QueryError if they have none."""
    if not isinstance(cells, CountedCells):
        raise QueryError(
            f"{cells.path}: {question} needs the counts, and minified data has none: use the full data "
            "(atlasvi query MINI DATA ..., where DATA has the counts)."
        )
    return cells
