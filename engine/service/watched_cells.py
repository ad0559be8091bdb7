"""The cells of a store for one question, which asks before it reads each slice whether it should go on."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.question_cells import BATCH_SIZE, MinifiedCells, Posterior


class WatchedCells(MinifiedCells):
    """The cells of an opened store. `check` is called before cells are read; its errors end the question."""

    def __init__(self, kept: KeptPosterior, check: Callable[[], None]) -> None:
        super().__init__(kept)
        self._check = check

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of cells [start, stop), or of all."""
        self._check()
        return super().read_column(name, start, stop)

    def read_posteriors(
        self, model: VAE, cells: np.ndarray | None = None, batch_size: int = BATCH_SIZE, means: bool = False
    ) -> Iterator[Posterior]:
        """The kept posterior of the chosen cells, by minibatch: decoding many draws of one takes seconds."""
        for posterior in super().read_posteriors(model, cells, batch_size, means):
            self._check()
            yield posterior

    def _take(self, name: str | None, cells: np.ndarray) -> pd.Series:
        self._check()
        return super()._take(name, cells)

    def _read_slices(
        self, cells: np.ndarray | None, means: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for part in super()._read_slices(cells, means):
            self._check()
            yield part
