"""A model's set-up, split and history, under scvi-tools' names."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from atlasvi.engine.api.training_arguments import show_history
from atlasvi.engine.minified.kept_posterior import MINIFIED, MINIFY_TYPE
from atlasvi.engine.model.covariates import KINDS
from atlasvi.engine.model.run_files import MODEL
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE as Model
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError, QuestionCells
from atlasvi.engine.scvi_tools.model_directories import open_model, read_registry
from atlasvi.engine.scvi_tools.registry import write_registry
from atlasvi.engine.terminal import count, say
from atlasvi.engine.training.settings import SettingError

if TYPE_CHECKING:
    import anndata


class Statistics(dict[str, int]):
    """Sizes by name, also as attributes: `summary_stats.n_vars`."""

    def __getattr__(self, name: str) -> int:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}; there are: {', '.join(self)}") from None


class ModelViews:
    """Views of the set-up and history; a subclass has the model and its cells."""

    run: TrainedRun
    is_trained: bool
    _adata: "anndata.AnnData | None"
    _cells: QuestionCells | None

    @property
    def module(self) -> Model:
        """The model itself."""
        return self.run.model

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Metrics by name, each a table with a row for each epoch.

        `train_loss` and `validation_loss` are missing with a warm-up by steps: then an epoch has no single KL weight.
        """
        return show_history((self.run.state or {}).get("history", ()))

    def _keep_split(self, parts: dict[str, np.ndarray]) -> None:
        """Keep the indices of the cells of each part, and the names of an AnnData's cells."""
        self._parts = parts
        self._split_names = self._adata.obs_names if self._adata is not None and parts else None

    def _find_part(self, name: str) -> np.ndarray | None:
        """int64 indices that a part's cells have now: those of an AnnData may have been filtered or reordered."""
        numbers, was = self._parts.get(name), self._split_names
        if numbers is None or was is None or self._adata is None or was.equals(now := self._adata.obs_names):
            return numbers
        if not (was.is_unique and now.is_unique):
            raise QueryError(
                "The AnnData has other cells than when the model was trained, and cell names repeat, so the cells that "
                "were held out can't be found."
            )
        places = now.get_indexer(was[numbers])
        return np.sort(places[places >= 0]).astype(np.int64)

    @property
    def train_indices(self) -> np.ndarray | None:
        """int64 indices of the training cells; None if unknown."""
        return self._find_part("train")

    @property
    def validation_indices(self) -> np.ndarray | None:
        """int64 indices of the validation cells; None if unknown."""
        return self._find_part("validation")

    @property
    def test_indices(self) -> np.ndarray | None:
        """int64 indices of the cells held out of both; None if unknown."""
        return self._find_part("test")

    @property
    def minified_data_type(self) -> str | None:
        """How the model's data was minified; None if it was not."""
        if self._adata is not None:
            return self._adata.uns.get(MINIFIED)
        return MINIFY_TYPE if isinstance(self._cells, MinifiedCells) else None

    def get_var_names(self) -> np.ndarray:
        """Genes of the model."""
        return np.array(self.run.genes, object)

    @property
    def registry_(self) -> dict[str, Any]:
        """The set-up of the model's data, in scvi-tools' layout."""
        return write_registry(self.run.setup, self.run.model.settings, self.run.genes)

    @property
    def summary_stats(self) -> Statistics:
        """Sizes of the set-up: n_cells, n_vars, n_batch, n_labels, n_extra_categorical_covs, ..."""
        fields = self.registry_["field_registries"].values()
        return Statistics({name: n for field in fields for name, n in field["summary_stats"].items()})

    def get_setup_arg(self, setup_arg: str) -> Any:
        """The value of an argument of `setup_anndata`. Raises SettingError, with all arguments, for an unknown one."""
        arguments = self.registry_["setup_args"]
        if setup_arg not in arguments:
            raise SettingError(f"setup_anndata has no argument {setup_arg!r}; it has: {', '.join(arguments)}.")
        return arguments[setup_arg]

    @staticmethod
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict[str, Any]:
        """The registry of a saved model, ours or scvi-tools'. Raises SourceError if there is no model."""
        file = Path(dir_path) / f"{prefix or ''}{MODEL}"
        if (registry := read_registry(file)) is not None:
            return registry
        run = open_model(dir_path)
        return write_registry(run.setup, run.model.settings, run.genes)

    @classmethod
    def view_setup_args(cls, dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments of `setup_anndata` for a saved model."""
        arguments = cls.load_registry(dir_path, prefix)["setup_args"]
        _print([f"SCVI.setup_anndata of {dir_path}", *(f"{name}: {value!r}" for name, value in arguments.items())])

    def view_anndata_setup(self, adata: Any = None, hide_state_registries: bool = False) -> None:
        """Print the columns that the model uses, and how many categories each has.

        adata                  data to check: it must have the genes and columns of the model
        hide_state_registries  leave the categories themselves out
        Raises GeneError or ColumnError if genes or columns are missing.
        """
        setup, shown = self.run.setup, 0 if hide_state_registries else 8
        lines = [f"SCVI of {count(len(self.run.genes), 'gene')}; counts in {setup.layer or 'X'}"]
        if adata is not None:
            cells = open_question_cells(adata, self.run)
            setup.read_codes(cells)
            lines.append(f"{cells.path}: {count(cells.n_cells, 'cell')}")
        for kind in KINDS:
            for column in setup.columns(kind):
                line = f"{kind.title}: obs column {column!r}"
                if kind.noun is not None:
                    known = setup.categories[kind.code][column]
                    some = ", ".join(map(str, known[:shown])) + (", ..." if len(known) > shown else "")
                    line += f", {count(len(known), 'category', 'categories')}" + (f" ({some})" if shown else "")
                lines.append(line)
        _print(lines)

    def __repr__(self) -> str:
        settings = self.run.model.settings
        names = (
            "n_hidden",
            "n_latent",
            "n_layers",
            "dropout_rate",
            "dispersion",
            "gene_likelihood",
            "latent_distribution",
        )
        options = ", ".join(f"{name}: {getattr(settings, name)}" for name in names)
        return (
            f"SCVI model with the following parameters: \n{options}.\n"
            f"Training status: {'Trained' if self.is_trained else 'Not Trained'}\n"
            f"Model's adata is minified?: {self.minified_data_type is not None}"
        )


def _print(lines: list[str]) -> None:
    for line in lines:
        say(line)
