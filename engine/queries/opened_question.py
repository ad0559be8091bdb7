"""A model and the cells of a question, opened from their paths."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import pandas as pd
from torch import Generator

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.minified.places import name_place
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.gene_names import GeneNames
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import CountedCells, MinifiedCells, QueryError, QuestionCells
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.run_parts import choose_device
from atlasvi.loaders.places.object_path import to_place


class OpenedQuestion:
    """The model and the cells that a question is about.

    place   minified data, whose cells are used unless `data` is set; or a run or a model, which needs `data`
    data    cells to use: a cell store, any source, or minified data
    model   a run or a model, for minified data of scvi-tools without a model beside it
    device  'cpu', 'cuda' or 'auto': where to encode and decode
    gene_column  column of var with the names of the genes, in questions and answers; None: the model's own
    Raises SourceError if a path is of another kind or damaged, and the errors of `open_question_cells`.
    """

    cells: QuestionCells

    def __init__(
        self,
        place: str | Path,
        data: str | None = None,
        model: str | Path | None = None,
        device: str = "cpu",
        gene_column: str | None = None,
    ) -> None:
        self.kept: KeptPosterior | None = None
        self._gene_column = gene_column
        self._device, self._run = choose_device(device), None
        what = name_place(place)
        if model is not None and what in ("minified store", "run", "model"):
            raise QueryError(f"{place} is a {what}, which has a model: leave --model (model=) out.")
        if data is None or what in ("minified store", "minified data"):
            self.kept = open_minified(place, model)
        if data is None:
            assert self.kept is not None
            self.cells = MinifiedCells(self.kept)
        else:
            if what in (None, "cell store") and to_place(place).exists():
                other = name_place(data) if to_place(data).exists() else None
                if other not in (None, "cell store"):
                    raise QueryError(
                        f"{place} is data, and {data} is a {other}: name the {other} first, then the data: "
                        f"atlasvi query {data} {place} ..."
                    )
            self._run = open_model(place) if self.kept is None else self.kept.run
            self.cells = open_question_cells(data, self._run)

    @classmethod
    def of_parts(cls, run: TrainedRun, cells: QuestionCells, device: str = "cpu") -> Self:
        """A question from a model and cells that are opened already."""
        opened = cls.__new__(cls)
        opened.kept, opened.cells, opened._run, opened._device = None, cells, run, choose_device(device)
        opened._gene_column = None
        return opened

    @cached_property
    def run(self) -> TrainedRun:
        """The model, on the device. Raises SourceError if minified data has none."""
        if self._run is None:
            assert self.kept is not None
            self._run = self.kept.run
        self._run.model.to(self._device).eval()
        known = self.cells.source.var if isinstance(self.cells, CountedCells) else None
        var = self._run.var if self._run.var is not None else known if self.kept is None else self.kept.var
        if var is None or not var.index.equals(pd.Index(self._run.genes)):  # data of which the model has other genes
            var = None if var is None or not var.index.is_unique else var.reindex(self._run.genes)
        genes = self._run.genes
        if self._gene_column is not None:
            genes = GeneNames(genes, var).rename(self._gene_column, self.cells.path)
            var = pd.DataFrame() if var is None else var.assign(var_names=self._run.genes)
        return replace(self._run, genes=genes, var=var)

    @property
    def encoder(self) -> VAE | None:
        """The model, if it must encode the cells; None if their latents were kept."""
        return self.run.model if isinstance(self.cells, CountedCells) else None

    def close(self) -> None:
        """Close the opened files of counts."""
        if isinstance(self.cells, CountedCells):
            self.cells.source.close()

    def make_generator(self, seed: int) -> Generator:
        """A generator for the draws of one answer."""
        return Generator(self._device).manual_seed(seed)


Asked = OpenedQuestion | KeptPosterior | str | Path
"""What a question is about: an opened question, a minified store or other minified data, or the path of one."""


def ask(asked: Asked) -> OpenedQuestion:
    """The model and the cells of a question, opened if they are not yet. Raises the errors of `OpenedQuestion`."""
    if isinstance(asked, KeptPosterior):
        return OpenedQuestion.of_parts(asked.run, MinifiedCells(asked))
    return asked if isinstance(asked, OpenedQuestion) else OpenedQuestion(asked)
