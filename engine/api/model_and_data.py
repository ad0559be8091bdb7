"""A model with its data: how both are opened, replaced and moved to a device. SCVI's methods are built on it."""

import warnings
from typing import TYPE_CHECKING, Any, Self

from torch import Generator

from atlasvi.engine.api.comparison_methods import Comparisons
from atlasvi.engine.api.setup_and_history import ModelViews
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.opened_data import is_anndata, keep_setup, open_question_cells, reopen_question_cells
from atlasvi.engine.queries.question_cells import CountedCells, QueryError, QuestionCells
from atlasvi.engine.training.run_parts import choose_device
from atlasvi.loaders.errors import AtlasviWarning

if TYPE_CHECKING:
    import anndata


class ModelAndData(Comparisons, ModelViews):
    """A model, its data if it has any, and the generator of its draws; subclasses add methods of one subject each."""

    _cells: QuestionCells | None
    seed: int

    def _begin(self, run: TrainedRun, adata: Any, seed: int, device: str = "auto") -> None:
        self.run, self.seed, self.is_trained = run, seed, False
        self._adata = adata if is_anndata(adata) else None
        self._cells = None
        self._keep_split({})
        self.to_device(device)

    @classmethod
    def _of_run(cls, run: TrainedRun, adata: Any, seed: int = 0, device: str = "auto") -> Self:
        """A model from a run, with data or without."""
        model = cls.__new__(cls)
        model._begin(run, adata, seed, device)
        if adata is not None:
            model.adata = adata
            if model._adata is not None and isinstance(model._cells, CountedCells):
                keep_setup(model._adata, run.setup)
        return model

    @property
    def adata(self) -> "anndata.AnnData | None":
        """The model's AnnData, as it is now; None if its data is of another kind, or missing."""
        return self._adata

    @adata.setter
    def adata(self, adata: Any) -> None:
        """Set other data of any kind, with the same genes and columns. Raises the errors of `load` for data."""
        cells = None if adata is None else open_question_cells(adata, self.run)
        if cells is not None and is_anndata(adata):  # for data on disk, columns are read when they are needed
            self.run.setup.read_codes(cells)
        self._cells, self._adata = cells, adata if is_anndata(adata) else None

    def ask(self, adata: Any = None) -> QuestionCells:
        """The cells of `adata` (None: the model's own) in the form that questions need."""
        if not self.is_trained:
            warnings.warn("the model is not trained: its results mean little", AtlasviWarning, stacklevel=4)
        if adata is not None and adata is not self._adata:
            return open_question_cells(adata, self.run)
        if (cells := self._open_own()) is None:
            raise QueryError("The model has no data of its own: pass the data as adata=...")
        return cells

    def _open_own(self) -> QuestionCells | None:
        """The model's own data; for an AnnData the cells, counts and columns that it has now."""
        if self._adata is not None:
            self._cells = reopen_question_cells(self._adata, self.run, self._cells)
        return self._cells

    def to_device(self, device: Any) -> None:
        """Use this device from now on: 'auto', 'cpu' or 'cuda'; on another device, draws start again from the seed."""
        name = str(device)
        self.device = choose_device("cuda" if name == "gpu" or name.isdigit() else name.split(":")[0])
        self.run.model.to(self.device).eval()
        if getattr(self, "generator", None) is None or self.generator.device.type != self.device.type:
            self.generator = Generator(self.device).manual_seed(self.seed)
