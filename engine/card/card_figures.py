"""The figures of a card from what the pass over the cells left: sums, values per cell in files, and sampled cells."""

import functools
from collections.abc import Sequence

import numpy as np

from atlasvi.engine.card.card_parts import FinishedParts
from atlasvi.engine.card.card_split import PART_NAMES
from atlasvi.engine.card.cell_agreement import agree_among_draws, agree_over_cells, bin_cells, bin_values
from atlasvi.engine.card.draw_errors import Estimate, mean_known, mean_of_draws
from atlasvi.engine.card.marker_agreement import MarkerAgreement, marker_agreement
from atlasvi.engine.card.measured_parts import CELL_VALUES
from atlasvi.engine.card.model_card import PARTS, Figures, LabelFigures, Note, PartFigures, Verdict
from atlasvi.engine.card.part_statistics import PartStatistics
from atlasvi.engine.card.rank_sums import rank_sum_tests

GENE_VALUES = ("variation", "zero_fraction")
SAID_LABELS = 5  # by name in a note
TITLES = {
    "variation": "coefficient of variation",
    "library": "counts",
    "expressed": "genes expressed",
    "zero_fraction": "fraction of cells without a count",
}
GOOD_FROM, DO_NOT_USE_BELOW = 0.6, 0.4
"""Of a squared Pearson correlation: the hub's text advises against generated data below 0.4; 0.6 is our own."""


def make_parts(
    finished: FinishedParts, label_names: Sequence[str], samples: dict[str, np.ndarray], labels: np.ndarray | None
) -> tuple[dict[str, PartFigures], list[Note]]:
    """The figures of each part that has cells, and notes.

    samples  of each part by its name in PARTS: ascending indices of the cells of its Wilcoxon test
    labels   int [cells of the data], below 0 for a cell without one; None: no labels
    """
    found, untested = {}, dict[str, dict[str, str]]()
    for name in PARTS:
        sums = _total(finished) if name == "all" else finished.parts.get(name)
        if sums is None or not sums.n_cells:
            continue
        code = None if name == "all" else PART_NAMES.index(name)
        has_counts = bool(finished.sampled.counts) or bool(sums.genes[0].sums.any())
        measures = CELL_VALUES if has_counts else ("library",)
        slices = {each: finished.slice_values(each, code) for each in measures}
        cells = {each: agree_over_cells(slices[each], sums.n_cells) for each in measures}
        densities = {f"cell {each}": bin_cells(slices[each], f"{TITLES[each]} of a cell") for each in measures}
        genes: dict[str, Figures] = {}
        attainable: Figures = {}
        losses = sums.loss_figures()
        if has_counts:
            for each in GENE_VALUES:
                genes[each] = sums.gene_figures(each)
                real, draws = sums.gene_values(each)
                densities[f"gene {each}"] = bin_values(real, mean_known(draws), f"{TITLES[each]} of a gene")
            real, draws = sums.gene_values("variation")
            of_genes = [np.stack([real, *draws])]
            for block, pairs in (("cells", slices["variation"]), ("genes", functools.partial(iter, of_genes))):
                if np.isfinite((itself := agree_among_draws(pairs)).value):
                    attainable[block] = itself
        else:
            losses = {"kl": losses["kl"]}
        by_label: tuple[LabelFigures, ...] = ()
        n_sampled = 0
        if labels is not None and has_counts:
            by_label, n_sampled, untested[name] = _test_labels(finished, sums, label_names, samples[name], labels)
        without, never = sums.n_genes_without_counts() if has_counts else (0, 0)
        found[name] = PartFigures(
            n_cells=sums.n_cells,
            cells=cells,
            genes=genes,
            labels=by_label,
            n_sampled=n_sampled,
            calibration=sums.ranks.calibrate(),
            losses=losses,
            densities=densities,
            n_genes_without_counts=without,
            n_genes_never_drawn=never,
            attainable=attainable,
        )
    return found, explain_untested_labels(untested)


def explain_untested_labels(untested: dict[str, dict[str, str]]) -> list[Note]:
    """Notes on the labels that have no test: by part, why each has none. A label without a test among all cells is said
    once, and labels with the same reason together: an atlas may have hundreds."""
    notes, whole = [], untested.get("all", {})
    for part, labels in untested.items():
        where = "" if part == "all" else f" among {part} cells"
        by_reason: dict[str, list[str]] = {}
        for label, reason in labels.items():
            if part == "all" or label not in whole:
                by_reason.setdefault(reason, []).append(label)
        for reason, which in by_reason.items():
            said = f"Label {which[0]!r}{where} has no test: {reason}."
            if len(which) > 1:
                more = f" and {len(which) - SAID_LABELS:,} more" if len(which) > SAID_LABELS else ""
                some = ", ".join(map(repr, which[:SAID_LABELS]))
                said = f"{len(which):,} labels{where} have no test: {reason.replace('it', 'each', 1)} ({some}{more})."
            notes.append(Note("differential expression", said))
    return notes


def _total(finished: FinishedParts) -> PartStatistics:
    """The sums of all parts together."""
    parts = list(finished.parts.values())
    whole = PartStatistics(
        len(parts[0].genes[0].sums),
        parts[0].n_draws,
        len(parts[0].labels[0].n_cells) if parts[0].labels else 0,
        parts[0].n_tested,
    )
    for part in parts:
        whole.extend(part)
    return whole


def _test_labels(
    finished: FinishedParts,
    sums: PartStatistics,
    names: Sequence[str],
    sample: np.ndarray,
    labels: np.ndarray,
) -> tuple[tuple[LabelFigures, ...], int, dict[str, str]]:
    """Figures by label, those with most cells first; the number of sampled cells; why labels have no test."""
    welch, untested = sums.marker_figures()
    rows = np.searchsorted(finished.sampled.rows, sample)
    own = labels[sample].astype(np.int64)
    in_sample = np.bincount(own, minlength=len(names))
    wilcoxon: dict[int, Figures] = {}
    if len(rows):
        real, *draws = (rank_sum_tests(counts[rows], own, len(names)) for counts in finished.sampled.counts)
        for label in range(len(names)):
            if label not in real.untested:
                found = zip(*(marker_agreement(tests, real, label) for tests in draws))
                wilcoxon[label] = {key: mean_of_draws(values) for key, values in zip(MarkerAgreement._fields, found)}
    n_cells = sums.labels[0].n_cells
    order = sorted(range(len(names)), key=lambda label: (-int(n_cells[label]), names[label]))
    figures = tuple(
        LabelFigures(
            names[label], int(n_cells[label]), welch.get(label, {}), wilcoxon.get(label, {}), int(in_sample[label])
        )
        for label in order
        if n_cells[label]
    )
    return (
        figures,
        len(rows),
        {names[label]: untested[label] for label in order if label in untested and n_cells[label]},
    )


def judge(parts: dict[str, PartFigures]) -> tuple[Verdict, ...]:
    """What the squared Pearson correlations of the coefficients of variation say, for cells and genes of each part."""
    verdicts = []
    for name, part in parts.items():
        for block, figures in (("cells", part.cells), ("genes", part.genes)):
            if "variation" not in figures:
                continue
            pearson = figures["variation"]["pearson"]
            # the square of a negative correlation would say that it is good; NaN stays NaN
            squared = Estimate(float(np.maximum(pearson.value, 0)) ** 2, 2 * abs(pearson.value) * pearson.error)
            verdicts.append(Verdict(name, block, squared, _word(squared.value)))
    return tuple(verdicts)


def _word(squared: float) -> str:
    if np.isnan(squared):
        return "unknown"
    if squared < DO_NOT_USE_BELOW:
        return "do not use generated data"
    return "good" if squared >= GOOD_FROM else "doubtful"
