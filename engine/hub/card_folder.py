"""The folder of a model's card: figures, page and README, and what scvi-tools' hub needs to open the model."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from atlasvi.engine.card.hub_readme import describe_model, make_readme
from atlasvi.engine.card.make_card import make_card
from atlasvi.engine.card.model_card import ModelCard
from atlasvi.engine.card.page import make_page, name_model
from atlasvi.engine.hub.hub_files import PAGE, README
from atlasvi.engine.hub.hub_folder import HubData, check_data_url, fill_hub_folder
from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.question_cells import QuestionCells
from atlasvi.loaders.errors import SourceError


def write_card_folder(
    run: TrainedRun | str | Path,
    data: Any,
    out: str | Path,
    *,
    minified: KeptPosterior | str | Path | None = None,
    data_url: str | None = None,
    name: str | None = None,
    **options: Any,
) -> ModelCard:
    """Compute a model's card, and write it as a folder that `scvi.hub.HubModel` and `SCVI.load` open.

    minified  the minified cells of `data`, of which adata.h5ad is made; None: the posterior that the draws are from is
              kept for it
    data_url  where all of the data can be had: http(s) or ftp
    name      the model's, in README.md and card.html; None: the data's
    options   as for `make_card`, whose ranks, continuation and errors hold here too
    """
    files = _HubFiles(minified, data_url, name)
    return make_card(run, data, out, files=files, **options)


class _HubFiles:
    """What `make_card` writes beside the figures."""

    def __init__(self, minified: KeptPosterior | str | Path | None, data_url: str | None, name: str | None) -> None:
        if data_url is not None:
            check_data_url(data_url)
        self._minified = open_minified(minified) if isinstance(minified, (str, Path)) else minified
        self._data_url, self._name = data_url, name
        self.needs_posterior = minified is None

    def check(self, run: TrainedRun, cells: QuestionCells) -> None:
        """Raise SourceError if the minified cells are of another model or number than those of the card."""
        if self._minified is not None:
            self._minified.check_model(run)
            if self._minified.n_cells != cells.n_cells:
                raise SourceError(
                    f"{self._minified.path}: it has {self._minified.n_cells:,} minified cells and {cells.path} has "
                    f"{cells.n_cells:,}: give the minified cells of that data, or none, then they are encoded."
                )

    def write(self, folder: Path, run: TrainedRun, card: ModelCard, kept: KeptPosterior | None) -> None:
        """Write the files of a hub folder, the card's among them."""

        def write_pages(folder: Path, held: HubData) -> None:
            facts = describe_model(
                run,
                self._name or name_model(card),
                version("anndata"),
                data_is_minified=bool(held.n_cells),
                training_data_url=self._data_url,
                data_in_folder=held.describe(),
            )
            (folder / README).write_text(make_readme(card, facts), encoding="utf-8")
            (folder / PAGE).write_text(make_page(card, self._name), encoding="utf-8")

        fill_hub_folder(folder, self._minified or kept, run, write_pages, card, self._data_url)
