"""All figures of a card as tables of text, which the page writes as HTML and the README as Markdown."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from atlasvi.engine.card import wording
from atlasvi.engine.card.model_card import Figures, ModelCard, PartFigures
from atlasvi.engine.card.number_text import write_estimate

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    groups  (title, number of columns) of columns that belong together, without the first column; () for none
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()


def part_title(card: ModelCard, part: str) -> str:
    """'Training (900 cells)'."""
    return f"{wording.PARTS.get(part, part)} ({card.parts[part].n_cells:,} cells)"


def verdict_table(card: ModelCard) -> Table:
    """Squared Pearson correlations of the coefficients of variation and what they mean, by part."""
    rows = tuple(
        (
            wording.PARTS.get(each.part, each.part),
            f"{card.parts[each.part].n_cells:,}",
            wording.BLOCKS.get(each.block, each.block),
            write_estimate(each.squared_pearson),
            write_estimate(card.parts[each.part].attainable.get(each.block), NOTHING),
            each.words,
        )
        for each in card.verdicts
    )
    columns = ("Part", "Cells", "Coefficient of variation", "Squared Pearson", "Of a draw itself", "In words")
    return Table("What the squared Pearson correlation says, by part of the cells", columns, rows)


def agreement_table(card: ModelCard, quantity: str) -> Table:
    """The agreement of one of `wording.QUANTITIES`, by part."""
    block, name = quantity.split(" ")
    return _by_part(
        card, wording.QUANTITIES[quantity][0], wording.AGREEMENT, lambda part: _agreement(card, part, block, name)
    )


def losses_table(card: ModelCard) -> Table:
    """ELBO, reconstruction loss and KL, by part."""
    return _by_part(card, "Losses, in nats per cell", wording.LOSSES, lambda part: card.parts[part].losses)


def calibration_table(card: ModelCard) -> Table:
    """Expected and observed coverage of credible intervals, by part."""
    parts = {name: part.calibration for name, part in card.parts.items() if part.calibration is not None}
    levels = sorted({point.expected for each in parts.values() for point in each.points})
    found = [{point.expected: point.observed for point in each.points} for each in parts.values()]
    rows = [(f"{level:.3f}", *(write_estimate(each.get(level), NOTHING) for each in found)) for level in levels]
    rows.append(("Mean absolute difference", *(write_estimate(each.error) for each in parts.values())))
    rows.append(("Counts compared", *(f"{each.n_counts:,}" for each in parts.values())))
    columns = ("Expected fraction inside", *(wording.PARTS.get(name, name) for name in parts))
    return Table("Fraction of counts inside credible intervals", columns, tuple(rows) if parts else ())


def expression_table(card: ModelCard, part: str) -> Table:
    """Differential expression by label, of one part: Welch's t-test and Wilcoxon's test."""
    figures = card.parts[part]
    rows = tuple(
        (
            each.label,
            f"{each.n_cells:,}",
            *(write_estimate(each.welch.get(name), NOTHING) for name in wording.MARKERS),
            f"{each.n_sampled:,}",
            *(write_estimate(each.wilcoxon.get(name), NOTHING) for name in wording.MARKERS),
        )
        for each in figures.labels
    )
    names = tuple(wording.MARKERS.values())
    groups = (
        ("Welch’s t-test, all cells", 1 + len(names)),
        (f"Wilcoxon’s rank-sum test, {_say_sample(figures.n_sampled, figures.n_cells)}", 1 + len(names)),
    )
    columns = ("Label", "Cells", *names, "Cells sampled", *names)
    return Table(f"Differential expression by label: {part_title(card, part)}", columns, rows, groups)


def genes_table(card: ModelCard) -> Table:
    """Genes whose coefficient of variation is undefined and counts as 0."""
    parts = card.parts.values()
    rows = (
        ("Without real counts", *(f"{part.n_genes_without_counts:,}" for part in parts)),
        ("Never drawn", *(f"{part.n_genes_never_drawn:,}" for part in parts)),
    )
    columns = ("Genes", *(wording.PARTS.get(name, name) for name in card.parts))
    return Table("Genes whose coefficient of variation counts as 0", columns, rows)


def integration_table(card: ModelCard) -> Table:
    """Integration figures, and what each is."""
    found = card.integration
    if found is None:
        return Table("Integration", ("Figure", "Value", "What it is"), ())
    rows = tuple(
        (wording.INTEGRATION.get(name, name), write_estimate(each), found.meanings.get(name, ""))
        for name, each in found.figures.items()
    )
    sample = _say_sample(found.n_cells, card.provenance.n_cells)
    caption = f"Integration, {sample}, computed by {found.computed_by}"
    return Table(caption, ("Figure", "Value", "What it is"), rows)


def notes_table(card: ModelCard) -> Table:
    """What could not be computed, and why."""
    rows = tuple((note.subject, note.reason) for note in card.notes)
    return Table("What could not be computed, or holds only in part", ("Subject", "Why"), rows)


def split_groups(table: Table) -> Iterator[Table]:
    """A table for each group of columns, named by it, for where a table can't be wide."""
    first = 1
    for title, n in table.groups:
        chosen = slice(first, first + n)
        rows = tuple((row[0], *row[chosen]) for row in table.rows)
        yield Table(f"{table.caption}. {title}", (table.columns[0], *table.columns[chosen]), rows)
        first += n


def all_tables(card: ModelCard) -> Iterator[Table]:
    """Those of figures that have rows, in the order of the page."""
    yield verdict_table(card)
    for quantity in wording.QUANTITIES:
        yield agreement_table(card, quantity)
    yield genes_table(card)
    for part in card.parts:
        yield expression_table(card, part)
    yield from (calibration_table(card), losses_table(card), integration_table(card))


def _say_sample(n: int, n_cells: int) -> str:
    return "all cells" if n == n_cells else f"stratified sample of {n:,} cells"


def _agreement(card: ModelCard, part: str, block: str, name: str) -> Figures:
    figures: PartFigures = card.parts[part]
    found = dict((figures.cells if block == "cell" else figures.genes).get(name, {}))
    squared = [each for each in card.verdicts if (each.part, each.block) == (part, f"{block}s")]
    if squared and name == "variation":
        found["squared_pearson"] = squared[0].squared_pearson
    return found


def _by_part(card: ModelCard, caption: str, names: dict[str, str], find: Callable[[str], Figures]) -> Table:
    """One row per figure that any part has, one column per part."""
    parts = {part: figures for part in card.parts if (figures := find(part))}
    known = {**names, **{name: name for each in parts.values() for name in each if name not in names}}
    rows = tuple(
        (title, *(write_estimate(each.get(name), NOTHING) for each in parts.values()))
        for name, title in known.items()
        if any(name in each for each in parts.values())
    )
    return Table(caption, ("Figure", *(wording.PARTS.get(part, part) for part in parts)), rows)
