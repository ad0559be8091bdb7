"""Compute a card again from the same model and data, and name the figures that moved by more than their errors."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.make_card import make_card
from atlasvi.engine.card.model_card import METRICS, Figures, ModelCard
from atlasvi.engine.model.run_files import MODEL
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.loaders.errors import AtlasviError, SourceError
from atlasvi.loaders.ingestion.ingest import Progress
from atlasvi.loaders.sources.data_spec import DataSpec

ERRORS, LEAST_CHANGE = 2, 1e-5
"""A figure has moved if it changes by more than 2 of its errors (the larger one of both cards), and by more than 1e-5
of its size, which the order of sums and another processor account for."""


class CardChangedError(AtlasviError, ValueError):
    """The card was computed again, and it is another one; the message names the first figures that moved."""


def read_card(folder: str | Path) -> ModelCard:
    """The card in a folder. Raises SourceError if there is none, or if it is damaged."""
    file = Path(folder) / METRICS
    try:
        return ModelCard.from_json(file.read_text("utf-8"), str(file))
    except FileNotFoundError:
        raise SourceError(f"{folder}: there is no card: make one with atlasvi card RUN DATA --out DIR.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file}: it can't be read ({error}).") from error


def check_card(
    folder: str | Path,
    data: DataSpec | str | Path,
    run: TrainedRun | str | Path | None = None,
    *,
    device: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> Iterator[str]:
    """Compute the card of a folder again; yields lines on what was compared.

    run  the model; None: that in the folder
    Raises CardChangedError, after a line for each difference, if the data, the model or a figure is another one.
    """
    card = read_card(folder)
    if run is None:
        if not (Path(folder) / MODEL).is_file():
            raise SourceError(f"{folder}: the card has no model beside it ({MODEL}): give the run with --run RUN.")
        run = folder
    opened = run if isinstance(run, TrainedRun) else open_model(run)
    known = card.provenance
    again = make_card(
        opened,
        data,
        labels_key=known.label_column,
        batch_key=known.batch_column,
        n_draws=known.n_draws,
        seed=known.seed,
        split=known.split,
        device=device,
        progress=progress,
    )
    moved = [*_compare_sources(card, again), *compare_figures(card, again)]
    yield f"{folder}: {len(list_figures(card)):,} figures computed again from {data}"
    yield from moved
    if moved:
        more = f", and {len(moved) - 3} more" if len(moved) > 3 else ""
        raise CardChangedError(f"{folder}: the card no longer holds: {'; '.join(moved[:3])}{more}.")
    yield f"{folder}: nothing moved beyond its error"


def compare_figures(card: ModelCard, again: ModelCard) -> list[str]:
    """What moved beyond its error, a few words each; figures of both cards are compared by name."""
    before, now = list_figures(card), list_figures(again)
    moved = [f"{name} is missing" for name in before if name not in now]
    moved += [f"{name} is new" for name in now if name not in before]
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if math.isnan(old.value) and math.isnan(new.value):
            continue
        errors = [error for error in (old.error, new.error) if not math.isnan(error)]
        allowed = max(ERRORS * max(errors, default=0), LEAST_CHANGE * abs(old.value))
        if not abs(new.value - old.value) <= allowed:  # NaN beside a number has moved too
            moved.append(f"{name} was {old.value:.6g} and is {new.value:.6g} (error {max(errors, default=0):.2g})")
    return sorted(moved)


def list_figures(card: ModelCard) -> dict[str, Estimate]:
    """All figures of a card by name, such as 'training cells variation pearson'."""
    found: dict[str, Estimate] = {}

    def add(prefix: str, figures: Figures) -> None:
        found.update({f"{prefix} {name}": estimate for name, estimate in figures.items()})

    for name, part in card.parts.items():
        for block, by_measure in (("cells", part.cells), ("genes", part.genes)):
            for measure, figures in by_measure.items():
                add(f"{name} {block} {measure}", figures)
        for label in part.labels:
            add(f"{name} label {label.label!r} Welch", label.welch)
            add(f"{name} label {label.label!r} Wilcoxon", label.wilcoxon)
        add(f"{name} loss", part.losses)
        if part.calibration is not None:
            found[f"{name} calibration error"] = part.calibration.error
            add(f"{name} calibration", {f"{point.expected:.3f}": point.observed for point in part.calibration.points})
    if card.integration is not None:
        add("integration", card.integration.figures)
    return found


def _compare_sources(card: ModelCard, again: ModelCard) -> Iterator[str]:
    """Whether both cards are of the same data and model."""
    names: dict[str, Callable[[ModelCard], object]] = {
        "the number of cells": lambda each: each.provenance.n_cells,
        "the genes (hash)": lambda each: each.provenance.genes_sha256,
        "the counts (hash)": lambda each: each.provenance.counts_hash,
        "the weights (hash)": lambda each: each.provenance.weights_sha256,
    }
    for name, read in names.items():
        if read(card) != read(again):
            yield f"{name} was {read(card)} and is {read(again)}"
