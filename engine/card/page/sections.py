"""The sections of the page, in the order in which they stand on it; one that has nothing to show says why."""

import json
import math
from collections.abc import Iterator
from typing import Any

from atlasvi.engine.card import card_tables, wording
from atlasvi.engine.card.card_tables import Table, part_title
from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import ModelCard, Verdict
from atlasvi.engine.card.number_text import write_bytes, write_estimate, write_number, write_seconds
from atlasvi.engine.card.page import figures
from atlasvi.engine.card.page.elements import charts, html_table, paragraph, section
from atlasvi.engine.card.page.markup import Content, Markup, tag

HEADLINE = ("test", "validation", "training", "all")
"""The part whose verdict is the headline: the one that the model saw least of."""
TONES = {"good": ("good", "✓"), "doubtful": ("doubtful", "!"), "do not use generated data": ("bad", "✕")}
LONGEST = 400  # letters of a setting on the page


def verdict(card: ModelCard) -> Markup:
    """The headline: what generated counts are good for."""
    parts = {each.part for each in card.verdicts}
    part = next((each for each in HEADLINE if each in parts), None)
    if part is None:
        return section("verdict", "Can generated counts be used?", nothing(card, "verdict", "squared Pearson"))
    attainable = card.parts[part].attainable
    tiles = [_tile(each, attainable.get(each.block)) for each in card.verdicts if each.part == part]
    return section(
        "verdict",
        "Can generated counts be used?",
        paragraph(f"How well generated counts keep the variation of the real ones, in {_cells_of(card, part)}."),
        tag("div", tiles, class_="tiles"),
        paragraph(wording.THRESHOLD_ADVICE),
        paragraph(wording.ATTAINABLE_TEXT) if attainable else Markup(""),
        html_table(card_tables.verdict_table(card), words=True),
    )


def facts(card: ModelCard) -> Markup:
    """The numbers that a reader looks for first."""
    origin = card.provenance
    values = {"Cells": f"{origin.n_cells:,}", "Genes": f"{origin.n_genes:,}"}
    if card.picture is not None and card.picture.batch is not None:
        values["Batches"] = f"{len(card.picture.batch.names):,}"
    labels = max((len(part.labels) for part in card.parts.values()), default=0)
    if labels:
        values["Labels"] = f"{labels:,}"
    for name, title, write in (
        ("epochs", "Epochs", write_number),
        ("seconds", "Training time", write_seconds),
        ("cells_per_s", "Cells/s in training", write_number),
    ):
        value = origin.training.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            values[title] = f"{value:,}" if isinstance(value, int) else write(value)
    values["Draws"] = f"{origin.n_draws:,}"
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()], class_="facts")


def training(card: ModelCard) -> Markup:
    """Curves over epochs, and the losses of each part."""
    drawn = list(figures.training_charts(card))
    table = card_tables.losses_table(card)
    content = [charts(drawn) if drawn else nothing(card, "training curves", "curve")]
    if table.rows:
        content += [paragraph(wording.LOSSES_TEXT), html_table(table)]
    return section("training", "Training", content)


def latent_space(card: ModelCard) -> Markup:
    """The picture of the cells."""
    points, maps = card.picture, list(figures.latent_maps(card))
    if points is None or not maps:
        return section("latent-space", "Latent space", nothing(card, "picture", "latent", "label", "batch"))
    said = (
        f"{len(points.x):,} of {points.n_cells:,} cells, laid out by {points.method}. Choose a category to see it "
        "alone; a number on the map stands where the cells of its category lie together."
    )
    return section("latent-space", "Latent space", paragraph(said), tag("div", maps, class_="maps"))


def generated_counts(card: ModelCard) -> Markup:
    """Scatters of drawn against real values, with the agreement as numbers."""
    content: list[Content] = [paragraph(wording.DRAWS), paragraph(wording.AGREEMENT_TEXT)]
    n_known = 0
    for quantity, (title, text) in wording.QUANTITIES.items():
        drawn, table = figures.density_figures(card, quantity), card_tables.agreement_table(card, quantity)
        if drawn or table.rows:
            n_known += 1
            content += [tag("h3", title), paragraph(text), charts(drawn), html_table(table)]
    if not n_known:
        content.append(nothing(card, "counts", "variation", "draws"))
    elif any(part.n_genes_without_counts or part.n_genes_never_drawn for part in card.parts.values()):
        content.append(html_table(card_tables.genes_table(card)))
    return section("generated-counts", "Generated against real counts", content)


def expression(card: ModelCard) -> Markup:
    """Differential expression by label."""
    content: list[Content] = [paragraph(wording.EXPRESSION_TEXT), paragraph(wording.MARKERS_TEXT)]
    shown = [part for part in HEADLINE if part in card.parts and card.parts[part].labels]
    for part in shown:
        table = card_tables.expression_table(card, part)
        drawn = figures.expression_figures(card, part)
        title = tag("summary", tag("h3", part_title(card, part)))
        tables = [html_table(each) for each in card_tables.split_groups(table)]
        content.append(tag("details", title, charts(drawn), tables, open=part == shown[0]))
    if not shown:
        content.append(nothing(card, "differential expression", "label"))
    return section("expression", "Differential expression", content)


def calibration(card: ModelCard) -> Markup:
    """Credible intervals."""
    drawn = figures.calibration_figures(card)
    if not drawn:
        return section("calibration", "Calibration", nothing(card, "calibration", "credible"))
    table = html_table(card_tables.calibration_table(card))
    return section(
        "calibration",
        "Calibration",
        paragraph(wording.CALIBRATION_TEXT),
        paragraph(wording.RANKS_TEXT),
        charts(drawn),
        table,
    )


def integration(card: ModelCard) -> Markup:
    """Labels apart, batches mixed."""
    table = card_tables.integration_table(card)
    if not table.rows:
        return section("integration", "Integration", nothing(card, "integration", "silhouette", "scib"))
    return section(
        "integration",
        "Integration",
        paragraph(wording.INTEGRATION_TEXT),
        charts([figures.integration_figure(card)]),
        html_table(table, words=True),
    )


def missing(card: ModelCard) -> Markup:
    """What could not be computed, and why."""
    table = card_tables.notes_table(card)
    said = html_table(table, words=True) or paragraph("Everything that a card can hold was computed.")
    return section("missing", "What could not be computed", said)


def provenance(card: ModelCard) -> Markup:
    """Which data, model and settings the figures are of, and how to compute them again."""
    origin = card.provenance
    rows = {
        "Model": origin.model,
        "Data": origin.data,
        "Label column": origin.label_column or "none",
        "Batch column": origin.batch_column or "none",
        "Hash of the counts": origin.counts_hash or "no counts",
        "SHA-256 of the gene names, 16 digits": origin.genes_sha256,
        "SHA-256 of the weights, 16 digits": origin.weights_sha256,
        "Seed of the draws": str(origin.seed),
        "Hardware": origin.hardware,
        "Time for the card": f"{write_seconds(origin.seconds)}, {origin.cells_per_s:,.0f} cells/s",
        "Peak memory": write_bytes(origin.peak_memory_bytes),
        "Created": origin.created,
    }
    sources = {name: f"{n:,}" for name, n in origin.sources.items()}
    tables = [
        Table("The card", ("What", "Value"), tuple(rows.items())),
        Table("Sources of the data", ("Source", "Cells"), tuple(sources.items())),
        *(
            Table(title, ("Name", "Value"), tuple(_settings(values)))
            for title, values in (
                ("Training", origin.training),
                ("Split of the cells", origin.split),
                ("Settings of the model", origin.model_settings),
                ("Set-up of the data", origin.setup),
                ("How the data is opened", origin.data_spec),
                ("Versions", origin.versions),
            )
        ),
    ]
    command = tag(
        "pre", tag("code", origin.command), class_="scroll", role="region", aria_label="Command", tabindex="0"
    )
    return section(
        "provenance",
        "Provenance",
        paragraph("This command computes the card again:"),
        command,
        tag("div", [html_table(table, words=True) for table in tables], class_="tables"),
    )


def nothing(card: ModelCard, *words: str) -> Markup:
    """Why a section is empty: the notes whose subject has one of the words, or else those on missing counts."""
    reasons = [note.reason for note in card.notes if any(word in note.subject.lower() for word in words)]
    reasons = reasons or [note.reason for note in card.notes if note.subject == "counts"]
    return paragraph("Not computed. ", " ".join(dict.fromkeys(reasons)), class_="nothing")


def _cells_of(card: ModelCard, part: str) -> str:
    """'the 100 validation cells', 'all 1,000 cells'."""
    n = f"{card.parts[part].n_cells:,}"
    return f"all {n} cells" if part == "all" else f"the {n} {wording.PARTS.get(part, part).lower()} cells"


def _tile(each: Verdict, attainable: Estimate | None) -> Markup:
    tone, sign = TONES.get(each.words, ("unknown", "?"))
    attained = attainable is not None and each.squared_pearson.value >= wording.NEARLY * attainable.value
    said = wording.ATTAINED if attained and each.words != "good" else wording.VERDICTS.get(each.words, "")
    return tag(
        "article",
        tag("h3", f"Coefficient of variation {wording.BLOCKS.get(each.block, each.block)}"),
        paragraph(tag("span", sign, aria_hidden="true", class_="sign"), each.words.capitalize(), class_="word"),
        paragraph(
            "Squared Pearson ", tag("b", write_estimate(each.squared_pearson)), f"; threshold {figures.THRESHOLD}"
        ),
        figures.draw_gauge(each),
        paragraph("A draw of the model itself: ", tag("b", write_estimate(attainable))) if attainable else Markup(""),
        paragraph(said),
        class_=f"tile {tone}",
    )


def _settings(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from ((f"{name}: {inner}", text) for inner, text in _settings(value))
        else:
            yield name, _setting(value)


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:,.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… (all in metrics.json)"
