"""The figures of the page, made from the card's values."""

import math
from collections.abc import Iterator

from atlasvi.engine.card import wording
from atlasvi.engine.card.card_figures import DO_NOT_USE_BELOW as THRESHOLD
from atlasvi.engine.card.card_tables import part_title
from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import PARTS, LabelFigures, ModelCard, Verdict
from atlasvi.engine.card.number_text import UNDEFINED, write_estimate, write_number
from atlasvi.engine.card.page.axes import WIDTH, Scale, picture
from atlasvi.engine.card.page.charts import (
    Dots,
    Line,
    density_chart,
    density_key,
    dot_chart,
    line_chart,
    series_key,
)
from atlasvi.engine.card.page.elements import figure
from atlasvi.engine.card.page.latent_map import draw_map
from atlasvi.engine.card.page.markup import Markup, tag

NO_CURVES = ("step", "n_cells", "seconds", "cells_per_s")
MOST_ROWS = 40
SHOWN_MARKERS = ("gene_f1", "lfc_pearson", "pr_auc")
TESTS = (("Welch’s t-test", 0), ("Wilcoxon’s rank-sum test", 1))


def parts_apart(card: ModelCard) -> list[str]:
    """Training, validation and test as far as they are there; else what there is."""
    return [part for part in card.parts if part != "all"] or list(card.parts)


def draw_gauge(verdict: Verdict) -> Markup:
    """The squared Pearson correlation on a line from 0 to 1, with the threshold."""
    x = Scale(0, 1, 12, WIDTH - 12)
    value = verdict.squared_pearson.value
    marks = [
        tag("path", d=f"M{x.start} 22H{x(THRESHOLD)}", class_="gauge below"),
        tag("path", d=f"M{x(THRESHOLD)} 22H{x.end}", class_="gauge"),
        tag("path", d=f"M{x(THRESHOLD)} 10V34", class_="threshold"),
        tag("text", f"threshold {THRESHOLD}", x=x(THRESHOLD), y=50, text_anchor="middle"),
        tag("text", "0", x=x.start, y=50, text_anchor="middle"),
        tag("text", "1", x=x.end, y=50, text_anchor="middle"),
    ]
    if math.isfinite(value):
        marks.append(tag("circle", cx=x(min(max(value, 0), 1)), cy=22, r=8, class_="needle"))
    alternative = (
        f"Squared Pearson correlation {write_number(value)} on a line from 0 to 1; the threshold is {THRESHOLD}."
    )
    return picture(56, alternative, tag("g", marks, class_="ticks"))


def training_charts(card: ModelCard) -> Iterator[Markup]:
    """A chart for each kind of loss, and for other values that change: curves over epochs."""
    curves = dict(card.training_curves)
    epochs = curves.pop("epoch", None)
    kinds: dict[str, list[Line]] = {kind: [] for kind in wording.LOSSES}
    for name, values in curves.items():
        part, kind = _split_name(name)
        changes = len({value for value in values if math.isfinite(value)}) > 1
        if kind not in NO_CURVES and (changes or kind in wording.LOSSES):
            line = Line(part, epochs or tuple(range(len(values))), values, _style(part))
            kinds.setdefault(kind, []).append(line)
    for kind, lines in kinds.items():
        if not any(math.isfinite(value) for line in lines for value in line.y):
            continue
        title = wording.LOSSES.get(kind) or wording.CURVES.get(kind) or kind.replace("_", " ")
        said = "; ".join(_ends(line) for line in lines if any(map(math.isfinite, line.y)))
        unit = "nats per cell" if kind in wording.LOSSES else kind.replace("_", " ")
        key = series_key([(wording.PARTS.get(line.name, line.name), line.style) for line in lines if line.name])
        yield figure(title, line_chart(lines, "epoch", unit, f"{title} by epoch: {said}."), key)


def latent_maps(card: ModelCard) -> Iterator[Markup]:
    """The map by label and by batch."""
    points = card.picture
    for name, kind in (("label", "label"), ("batch", "batch")):
        colouring = getattr(points, name, None)
        if points is not None and colouring is not None:
            drawn, buttons = draw_map(points, colouring, name)
            yield tag("div", figure(f"By {kind}: {colouring.column}", drawn), buttons, class_="map")


def density_figures(card: ModelCard, quantity: str) -> list[Markup]:
    """The scatter of drawn against real values of one quantity, for each part."""
    found = []
    block, name = quantity.split(" ")
    for part in parts_apart(card):
        density = card.parts[part].densities.get(quantity)
        if density is None:
            continue
        figures = (card.parts[part].cells if block == "cell" else card.parts[part].genes).get(name, {})
        n = sum(map(sum, density.counts))
        said = f"Pearson {write_estimate(figures.get('pearson'), UNDEFINED)}"
        alternative = (
            f"{wording.QUANTITIES[quantity][0]}, drawn against real: {n:,} {block}s of {part_title(card, part)}, "
            f"mean over draws. {said}; Spearman {write_estimate(figures.get('spearman'), UNDEFINED)}."
        )
        left_out = f" {density.n_left_out:,} with a value of 0 have no place here." if density.n_left_out else ""
        found.append(
            figure(
                f"{wording.PARTS.get(part, part)}: {said}",
                density_chart(density, "real", "drawn, mean over draws", alternative),
                density_key(density),
                tag("p", f"{n:,} {block}s.{left_out}", class_="small"),
            )
        )
    return found


def expression_figures(card: ModelCard, part: str) -> list[Markup]:
    """Some figures of the labels with most cells, up to `MOST_ROWS`: both tests, with their errors."""
    labels = card.parts[part].labels
    shown = [each for each in labels if each.welch or each.wilcoxon][:MOST_ROWS]
    found = []
    for name in SHOWN_MARKERS if shown else ():
        series = [
            Dots(test, [_pick(each, k).get(name) for each in shown], k)
            for k, (test, _) in enumerate(TESTS)
            if any(_pick(each, k) for each in shown)
        ]
        said = "; ".join(
            f"{dots.name}, from {write_number(min(values))} to {write_number(max(values))}"
            for dots in series
            if (values := [each.value for each in dots.values if each is not None and math.isfinite(each.value)])
        )
        title = wording.MARKERS[name]
        of = f"of the {len(shown)} labels with most cells, {part_title(card, part)}"
        alternative = f"{title} {of}: {said}. All values are in the table."
        found.append(
            figure(
                title,
                dot_chart([each.label for each in shown], series, title, alternative),
                series_key([(dots.name, dots.style) for dots in series]),
            )
        )
    return found


def calibration_figures(card: ModelCard) -> list[Markup]:
    """Coverage of credible intervals, and ranks of real counts among draws, by part."""
    parts = {part: found for part in parts_apart(card) if (found := card.parts[part].calibration) is not None}
    if not parts:
        return []
    coverage = [
        Line(
            part,
            [point.expected for point in each.points],
            [point.observed.value for point in each.points],
            PARTS.index(part) if part in PARTS else 0,
        )
        for part, each in parts.items()
    ]
    ranks = [
        Line(part, range(len(each.rank_histogram)), each.rank_histogram, _style(part)) for part, each in parts.items()
    ]
    n_ranks = max(len(line.y) for line in ranks)
    errors = "; ".join(
        f"{part_title(card, part)}, mean absolute difference {write_estimate(each.error)}"
        for part, each in parts.items()
    )
    highest = max([1.5 / max(n_ranks, 1), *(value * 1.1 for line in ranks for value in line.y if math.isfinite(value))])
    key = series_key([(wording.PARTS.get(part, part), _style(part)) for part in parts])
    inside = line_chart(
        coverage,
        "expected fraction inside",
        "observed fraction inside",
        f"Observed against expected coverage of credible intervals: {errors}.",
        diagonal=True,
        x_range=(0, 1),
        y_range=(0, 1),
        points=True,
    )
    below = line_chart(
        ranks,
        "number of draws below the real count",
        "fraction of counts",
        "Fraction of real counts by the number of draws below them: "
        + "; ".join(f"{line.name}: {', '.join(map(write_number, line.y))}" for line in ranks)
        + f". Flat would be {write_number(1 / max(n_ranks, 1))}.",
        level=1 / max(n_ranks, 1),
        y_range=(0, highest),
        points=True,
    )
    return [
        figure("Coverage of credible intervals", inside, key),
        figure("Ranks of real counts among the draws", below, key),
    ]


def integration_figure(card: ModelCard) -> Markup:
    """The integration figures on one line each."""
    found = card.integration
    if found is None or not found.figures:
        return Markup("")
    values: list[Estimate | None] = list(found.figures.values())
    names = [wording.INTEGRATION.get(name, name) for name in found.figures]
    said = "; ".join(f"{name} {write_estimate(each)}" for name, each in zip(names, values))
    chart = dot_chart(names, [Dots("", values)], "figure", f"Integration: {said}.")
    return figure("Integration figures", chart)


def _pick(label: LabelFigures, test: int) -> dict[str, Estimate]:
    return label.wilcoxon if test else label.welch


def _split_name(name: str) -> tuple[str, str]:
    """('validation', 'kl') of 'validation_kl', and of 'kl_validation' as scvi-tools has it; ('', name) of others."""
    words = {"train": "training", "validation": "validation", "test": "test"}
    first, _, rest = name.partition("_")
    if first in words and rest:
        return words[first], rest
    start, _, last = name.rpartition("_")
    if last not in words or not start:
        return "", name
    return words[last], "negative_elbo" if start == "elbo" else start  # scvi-tools records the loss by that name


def _style(part: str) -> int:
    return PARTS.index(part) if part in PARTS else 0


def _ends(line: Line) -> str:
    known = [value for value in line.y if math.isfinite(value)]
    name = f"{wording.PARTS.get(line.name, line.name)} ".lstrip()
    return f"{name}from {write_number(known[0])} to {write_number(known[-1])} in {len(known):,} epochs"
