"""The posterior of every cell of a card, kept by the pass that draws their counts, so that none is encoded twice.

`latents-N` in the job's folder: float32 [cells of part N, 2 x latent + 1], the mean and variance of q(z | x) and the
library size of each cell.
"""

from contextlib import closing
from typing import BinaryIO

import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import LIBRARY, KeptPosterior
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.question_cells import CountedCells, Posterior, QuestionCells
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.places.byte_files import open_file
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.tables.store_tables import check_column

LATENTS_FILE = "latents-{}"


class LatentsWriter:
    """Writes the posterior of the cells of a part, in any order, to a new file.

    start  index of the part's first cell
    """

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start

    def encode(self, model: VAE, cells: QuestionCells, chosen: np.ndarray, batch_size: int) -> None:
        """Encode the chosen cells (ascending indices) and write them: those that are in no part of the split."""
        at = 0
        for posterior in cells.read_posteriors(model, chosen, batch_size) if len(chosen) else ():
            self.write(chosen[at : at + len(posterior)], posterior)
            at += len(posterior)

    def write(self, here: np.ndarray, posterior: Posterior) -> None:
        """Write the posterior of the cells with these ascending indices."""
        columns = [posterior.qzm, posterior.qzv, posterior.library[:, None]]
        values = np.concatenate([each.cpu().numpy().astype(np.float32, copy=False) for each in columns], axis=1)
        ends = np.flatnonzero(np.diff(here) != 1) + 1  # of runs of consecutive cells
        for first, rows in zip(here[np.append(0, ends)], np.split(values, ends)):
            self._file.seek((int(first) - self._start) * 4 * values.shape[1])
            self._file.write(np.ascontiguousarray(rows).tobytes())


class CardPosterior(KeptPosterior):
    """The kept posterior of the cells of a card whose parts are all done, read by slices.

    scratch     the job's folder;  part_cells  number of cells of a part
    cells, run  the data and the model of the card
    """

    def __init__(self, scratch: Place, part_cells: int, cells: CountedCells, run: TrainedRun) -> None:
        n_latent = run.model.n_latent
        self._run, columns = run, (slice(0, n_latent), slice(n_latent, 2 * n_latent), slice(2 * n_latent, None))
        qzm, qzv, library = (_Column(scratch, part_cells, cells.n_cells, 2 * n_latent + 1, each) for each in columns)
        super().__init__(cells.path, cells.n_cells, _Obs(cells, library), cells.data.var, (qzm, qzv), n_latent)

    @property
    def run(self) -> TrainedRun:
        """The model of the card."""
        return self._run


class _Column:
    """Some of the numbers of each cell, float32 [cells, numbers], as an array that is sliced by cells."""

    def __init__(self, scratch: Place, part_cells: int, n_cells: int, width: int, columns: slice) -> None:
        self.dtype, self._scratch, self._part_cells, self._n_cells = np.dtype(np.float32), scratch, part_cells, n_cells
        self._width, self._columns = width, columns

    def __getitem__(self, cells: slice) -> np.ndarray:
        start, stop, _ = cells.indices(self._n_cells)
        found = [np.zeros((0, self._width), np.float32)]
        while start < stop:
            part, first = divmod(start, self._part_cells)
            n = min(stop - start, self._part_cells - first)
            values = np.empty((n, self._width), np.float32)
            with closing(open_file(self._scratch / LATENTS_FILE.format(part))) as file:
                if not file.read_into(4 * self._width * first, values.reshape(-1)):
                    raise SourceError(f"{file.path} is cut short: give the same command again.")
            found.append(values)
            start += n
        return np.concatenate(found)[:, self._columns]


class _Obs:
    """obs of the cells, with the library sizes in place of a column of that name; the last slice is kept."""

    def __init__(self, cells: CountedCells, library: _Column) -> None:
        self._cells, self._data, self._n_cells, self._library = cells, cells.data, cells.n_cells, library
        self._kept: tuple[tuple[int, int], pd.DataFrame] | None = None
        self.columns = [*(name for name in self._read(0, 0).columns if name != LIBRARY), LIBRARY]

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Names of cells [start, stop)."""
        return self._read(start, stop).index

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of cells [start, stop), or of all. Raises ColumnError, with the columns of obs."""
        stop = self._n_cells if stop is None else stop
        if name == LIBRARY:
            return pd.Series(self._library[start:stop][:, 0])
        check_column(name, self.columns, self._data.path)
        return self._read(start, stop)[name].reset_index(drop=True)

    def take_names(self, rows: np.ndarray) -> pd.Index:
        """Names of the cells with these ascending int64 indices."""
        return self._cells.read_names(rows)

    def take_column(self, name: str, rows: np.ndarray) -> pd.Series:
        """One column of the cells with these ascending int64 indices. Raises ColumnError, with the columns of obs."""
        if name != LIBRARY:
            return self._cells.take_column(name, rows)
        start, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        return pd.Series(self._library[start:stop][rows - start, 0])

    def _read(self, start: int, stop: int) -> pd.DataFrame:
        """obs of cells [start, stop)."""
        if self._kept is None or self._kept[0] != (start, stop):
            self._kept = (start, stop), self._data.read_obs(start, stop)
        return self._kept[1]
