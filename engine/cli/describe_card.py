"""The figures of a card in a terminal."""

import math
from collections.abc import Iterator
from pathlib import Path

from atlasvi.engine.card.card_check import read_card
from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import Figures
from atlasvi.engine.provenance import Provenance
from atlasvi.engine.terminal import count
from atlasvi.loaders.damage import reading

TITLES = {
    "variation": "coefficient of variation",
    "library": "counts",
    "expressed": "genes expressed",
    "zero_fraction": "zero fraction",
}
SHOWN_LABELS = 20


def describe_card(folder: str | Path) -> Iterator[str]:
    """Lines about the card in a folder."""
    card = read_card(folder)
    known = card.provenance
    yield f"{folder}: card of {known.model} (format {card.format})"
    sizes = f"{count(known.n_cells, 'cell')} x {count(known.n_genes, 'gene')}"
    yield f"  data {known.data}: {sizes}, counts {known.counts_hash or 'not kept'}, genes {known.genes_sha256}"
    if "mapped_from" in known.training:
        yield f"  mapped from {known.training['mapped_from']}"
    yield f"  {count(known.n_draws, 'draw')} of each cell, seed {known.seed}; atlasvi {known.versions.get('atlasvi')}"
    yield f"  computed {known.created} on {known.hardware} by: {known.command}"
    if known.commit:
        yield f"  git commit: {known.commit}"
    with reading(str(folder)):
        training = Provenance.from_record(known.training_provenance or None)
    if training is not None:
        yield from (f"  {line}" for line in training.describe("trained"))
    for name, part in card.parts.items():
        yield f"  {name}: {count(part.n_cells, 'cell')}"
        for block, by_measure in (("cell", part.cells), ("gene", part.genes)):
            for measure, figures in by_measure.items():
                yield f"    {TITLES[measure]} by {block}: {_write(figures)}"
        if part.losses:
            yield f"    nats per cell: {_write(part.losses)}"
        if part.calibration is not None:
            inside = ", ".join(f"{p.expected:.0%}: {p.observed.value:.1%}" for p in part.calibration.points)
            yield f"    counts inside credible intervals ({inside})"
        for label in part.labels[:SHOWN_LABELS]:
            tests = {"Welch": label.welch, "Wilcoxon": label.wilcoxon}
            for test, figures in tests.items():
                if figures:
                    yield f"    {label.label} ({count(label.n_cells, 'cell')}), {test}: {_write(figures)}"
        if len(part.labels) > SHOWN_LABELS:
            yield f"    and {count(len(part.labels) - SHOWN_LABELS, 'other label')} (see metrics.json)"
    for verdict in card.verdicts:
        squared = _number(verdict.squared_pearson)
        itself = card.parts[verdict.part].attainable.get(verdict.block)
        beside = "" if itself is None else f" (of a draw itself: {_number(itself)})"
        yield f"  {verdict.part}, variation of {verdict.block}: squared Pearson {squared}: {verdict.words}{beside}"
    if card.integration is not None:
        sample = count(card.integration.n_cells, "cell")
        yield f"  integration ({card.integration.computed_by}, {sample}): {_write(card.integration.figures)}"
    yield from (f"  {note.subject}: {note.reason}" for note in card.notes)


def _write(figures: Figures) -> str:
    return ", ".join(f"{name} {_number(estimate)}" for name, estimate in figures.items())


def _number(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "undefined"
    error = "" if math.isnan(estimate.error) or not estimate.error else f" ± {estimate.error:.1g}"
    return f"{estimate.value:.4g}{error}"
