"""A model and the cells that it is asked about, opened by their places."""

from functools import cached_property
from pathlib import Path

from torch import Generator

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.minified.places import name_place
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import CountedCells, MinifiedCells, QuestionCells
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.run_parts import choose_device


class OpenedQuestion:
    """What a question is put to.

    place   minified data, which is asked itself unless `data` is given; or a run or a model, which needs `data`
    data    cells to ask: a cell store, any source, or minified data
    model   a run or a model, for minified data of scvi-tools that has none beside it
    device  'cpu', 'cuda' or 'auto': where to encode and decode
    Raises SourceError where something is none of these or is damaged, and what `open_question_cells` raises.
    """

    cells: QuestionCells

    def __init__(
        self, place: str | Path, data: str | None = None, model: str | Path | None = None, device: str = "cpu"
    ) -> None:
        self.kept: KeptPosterior | None = None
        self._device, self._run = choose_device(device), None
        if data is None or name_place(place) in ("minified store", "minified data"):
            self.kept = open_minified(place, model)
        if data is None:
            assert self.kept is not None
            self.cells = MinifiedCells(self.kept)
        else:
            self._run = open_model(place) if self.kept is None else self.kept.run
            self.cells = open_question_cells(data, self._run)

    @cached_property
    def run(self) -> TrainedRun:
        """The model that is asked, on the device. Raises SourceError where minified data has none."""
        if self._run is None:
            assert self.kept is not None
            self._run = self.kept.run
        self._run.model.to(self._device).eval()
        return self._run

    @property
    def encoder(self) -> VAE | None:
        """The model, if the latents of the cells are still to be computed; None where they were kept."""
        return self.run.model if isinstance(self.cells, CountedCells) else None

    def close(self) -> None:
        """Close the files of counts that were opened."""
        if isinstance(self.cells, CountedCells):
            self.cells.source.close()

    def make_generator(self, seed: int) -> Generator:
        """A generator of the draws of one answer."""
        return Generator(self._device).manual_seed(seed)
