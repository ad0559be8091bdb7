"""Compute a card again from the same model and data, and name the figures that moved by more than their errors."""

import math
from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.integration import OWN_METHOD
from atlasvi.engine.card.make_card import SAMPLE_CELLS, make_card
from atlasvi.engine.card.model_card import METRICS, Figures, ModelCard
from atlasvi.engine.card.provenance import hash_genes
from atlasvi.engine.model.run_files import MODEL
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import CountedCells
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.terminal import count
from atlasvi.loaders.errors import AtlasviError, SourceError
from atlasvi.loaders.ingestion.ingest import Progress
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.sources.data_spec import DataSpec

ERRORS, LEAST_CHANGE = 2, 1e-5
"""A figure has moved if it changes by more than 2 of its errors (the larger one of both cards), and by more than 1e-5
of its size, which the order of sums and another processor account for."""


class CardChangedError(AtlasviError, ValueError):
    """The card was computed again, and it is another one; the message names the first figures that moved."""


def read_card(folder: str | Path) -> ModelCard:
    """The card in a folder. Raises SourceError if there is none, or if it is damaged."""
    file = to_place(folder) / METRICS
    try:
        return ModelCard.from_json(file.read_bytes().decode(), str(file))
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

    data  that of the card; or minified cells of it, of which the figures that need no counts are compared
    run   the model; None: that in the folder
    Raises CardChangedError if the data, the model or a figure is another one, for figures after a line for each.
    """
    card = read_card(folder)
    if run is None:
        if not (to_place(folder) / MODEL).is_file():
            raise SourceError(f"{folder}: the card has no model beside it ({MODEL}): give the run with --run RUN.")
        run = folder
    opened = run if isinstance(run, TrainedRun) else open_model(run)
    known = card.provenance
    opened.data = opened.data or DataSpec.from_record(known.data_spec)  # with the options that the card's data had
    _refuse_another_model(card, opened, folder)
    cells = open_question_cells(data, opened)
    try:
        if cells.n_cells != known.n_cells:
            raise CardChangedError(
                f"{cells.path}: it has {cells.n_cells:,} cells, and the card in {folder} is of {known.n_cells:,}: give "
                f"the data that it is of ({known.data}), or compute a new card."
            )
        again = make_card(
            opened,
            cells,
            labels_key=known.label_column,
            batch_key=known.batch_column,
            n_draws=known.n_draws,
            seed=known.seed,
            split=known.split,
            device=device,
            progress=progress,
        )
    finally:
        if isinstance(cells, CountedCells):
            cells.source.close()
    _refuse_other_cells(card, again, folder)
    left_out = dict(_list_incomparable(card, again))
    moved = compare_figures(card, again, left_out)
    yield f"{folder}: {count(len(list_figures(card).keys() - left_out), 'figure')} computed again from {data}"
    for reason, n in Counter(left_out.values()).items():
        yield f"{folder}: {count(n, 'figure')} not compared: {reason}"
    yield from moved
    if moved:
        more = f", and {len(moved) - 3} more" if len(moved) > 3 else ""
        raise CardChangedError(f"{folder}: the card no longer holds: {'; '.join(moved[:3])}{more}.")
    yield f"{folder}: nothing moved beyond its error"


def compare_figures(card: ModelCard, again: ModelCard, left_out: Container[str] = ()) -> list[str]:
    """What moved beyond its error, a few words each; figures of both cards are compared by name.

    left_out  names of figures that are not compared
    """
    before, now = (
        {name: each for name, each in list_figures(which).items() if name not in left_out} for which in (card, again)
    )
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


def _refuse_another_model(card: ModelCard, run: TrainedRun, folder: str | Path) -> None:
    """Raise CardChangedError if the weights or the genes are not those of the card."""
    for what, before, now in (
        ("genes", card.provenance.genes_sha256, hash_genes(run.genes)),
        ("weights", card.provenance.weights_sha256, run.weights_sha256),
    ):
        if before != now:
            raise CardChangedError(
                f"{run.path or folder}: this is not the model that the card in {folder} is of: the hash of its {what} "
                f"was {before} and is {now}. Give that model with --run RUN, or compute a new card."
            )


def _refuse_other_cells(card: ModelCard, again: ModelCard, folder: str | Path) -> None:
    """Raise CardChangedError if counts or library sizes are not those of the card."""
    before, now = card.provenance, again.provenance
    for what, old, new in (
        ("counts", before.counts_hash, now.counts_hash),
        ("library sizes", before.libraries_hash, now.libraries_hash),
    ):
        if old and new and old != new:
            raise CardChangedError(
                f"{now.data}: these are not the cells that the card in {folder} is of, or they have changed since: the "
                f"hash of their {what} was {old} and is {new}. Give that data ({before.data}), or compute a new card."
            )


def _list_incomparable(card: ModelCard, again: ModelCard) -> Iterator[tuple[str, str]]:
    """Names of figures that say nothing if they differ, and why."""
    before, now = list_figures(card), list_figures(again)
    one_is_minified = bool(card.provenance.counts_hash) != bool(again.provenance.counts_hash)
    orders = card.provenance.order_hash, again.provenance.order_hash
    other_order = all(orders) and orders[0] != orders[1]
    methods = [each.integration.computed_by for each in (card, again) if each.integration is not None]
    for name in before.keys() | now.keys():
        if name.startswith("integration "):
            if len(set(methods)) > 1:
                yield name, f"integration was computed by {methods[0]}, and now by {methods[1]}"
            elif other_order and (card.integration.n_cells > SAMPLE_CELLS or methods[0] != OWN_METHOD):  # type: ignore[union-attr]
                yield name, "the cells are in another order, so the sample is another one"
        elif one_is_minified and not (name in before and name in now):
            yield name, "they need the counts, and minified data has none"
        elif other_order and not name.endswith(" loss kl"):
            yield name, "the cells are in another order, so their draws are others"


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
        add(f"{name} attainable", part.attainable)
        if part.calibration is not None:
            found[f"{name} calibration error"] = part.calibration.error
            add(f"{name} calibration", {f"{point.expected:.3f}": point.observed for point in part.calibration.points})
    if card.integration is not None:
        add("integration", card.integration.figures)
    return found
