"""Genes in groups of cells: a dot plot, whose dots grow with the cells that express a gene, or a heat map."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from atlasvi.engine.plots.colouring import Numbers, name_unit, shorten
from atlasvi.engine.plots.embedding_plot import BORDER, TITLE, add_colour_bar
from atlasvi.engine.plots.palettes import NUMBERS, find_map
from atlasvi.engine.plots.picture_file import find_format, write_picture
from atlasvi.engine.plots.style import Style, drawing
from atlasvi.engine.queries.aggregate import aggregate
from atlasvi.engine.queries.markers import markers
from atlasvi.engine.queries.opened_question import Asked, OpenedQuestion, ask
from atlasvi.engine.queries.question_cells import QueryError, need_at_least
from atlasvi.engine.queries.shared_draws import Report
from atlasvi.loaders.errors import GeneError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["dots", "heatmap"]
GroupScale = Literal["log", "linear", "gene"]
FIELD = 1.25  # width and height of a field, in lines of text
SHOWN_SHARES = (0.25, 0.5, 0.75, 1.0)  # in the legend of a dot plot
SHARES = "cells with a count"  # the title of that legend
BAR = 6.0  # length of the colour bar, in lines of text
MOST_FIELDS = 20_000


@dataclass(frozen=True)
class GroupValues:
    """What is drawn: values and shares float64 [groups, genes].

    sizes   cells of each group
    owners  for each gene the place of the group whose marker it is; None: genes that were named
    shares  mean probability that a cell of the group has a count of the gene; None: not computed
    unit    of the values
    """

    groups: list[str]
    sizes: np.ndarray
    genes: list[str]
    owners: list[int] | None
    values: np.ndarray
    shares: np.ndarray | None
    unit: str


def plot_groups(
    asked: Asked,
    labels_key: str,
    out: str | Path | None = None,
    *,
    kind: Kind = "dots",
    genes: Sequence[str] | None = None,
    top: int = 3,
    chosen: np.ndarray | None = None,
    style: Style | None = None,
    map_name: str = NUMBERS,
    scale: GroupScale = "log",
    library_size: float | str = 10_000,
    max_cells: int | None = 2_000,
    seed: int = 0,
    replace: bool = False,
    progress: Report = lambda stage, done, total: None,
) -> "Figure":
    """Mean decoded expression of genes in the groups of an obs column.

    out         .png, .svg or .pdf; None: only the figure is returned
    kind        dots: the area of a dot is the mean probability, under the likelihood, that a cell of the group has a
                count of the gene at its own library size; heatmap: the mean expression alone
    genes       names; None: the `top` marker genes of each group (see `markers`)
    chosen      ascending int64 indices of the cells to use; None: all
    scale       log: log(1 + mean); linear: the mean; gene: from 0 in the group with the lowest mean of a gene to 1
    max_cells   decode at most so many cells of each group, chosen at random from `seed`; None: all
    replace     whether a file of this name may be replaced
    Raises ColumnError, GeneError or QueryError for what is not there, QueryError for dots of a model whose values are
    not counts, MissingDependencyError without matplotlib, OutputError if `out` can't be written.
    """
    style = style or Style()
    for name, value, known in (("kind", kind, get_args(Kind)), ("scale", scale, get_args(GroupScale))):
        if value not in known:
            raise QueryError(f"{name} is {value!r}: use one of {', '.join(known)}.")
    need_at_least(1, top=top)
    if out is not None:
        find_format(out, replace)
    with drawing(style):
        find_map(map_name)
        opened = ask(asked)
        owners = {} if genes else _find_markers(opened, labels_key, top, chosen, seed, progress)
        found = aggregate(
            opened,
            labels_key,
            genes=list(genes or owners),
            chosen=chosen,
            library_size=library_size,
            fraction_at="observed" if kind == "dots" else None,
            max_cells=max_cells,
            seed=seed,
            progress=progress,
        )
        names = found.groups.index.tolist()
        if len(names) * len(found.genes) > MOST_FIELDS:
            raise QueryError(
                f"{len(names):,} groups and {len(found.genes):,} genes are too many for a picture: name fewer genes, "
                "or choose cells of fewer groups."
            )
        places = [names.index(owner) for owner in owners.values()] or None
        values, unit = _scale_values(found.mean, scale, library_size)
        sizes = found.groups["n_cells"].to_numpy()
        figure = draw_groups(
            GroupValues(names, sizes, found.genes, places, values, found.fraction, unit), labels_key, style, map_name
        )
        if out is not None:
            write_picture(figure, out, style, replace)
    return figure


def _find_markers(
    opened: OpenedQuestion, labels_key: str, top: int, chosen: np.ndarray | None, seed: int, progress: Report
) -> dict[str, str]:
    """The best marker genes of each label, each with the first label that it marks, in the order of the labels."""
    table = markers(opened, labels_key, chosen=chosen, top=top, seed=seed, progress=progress)
    table = table[table["lfc_mean"] > 0]
    found: dict[str, str] = {}
    for gene, label in zip(table.index.astype(str), table["group1"].astype(str)):
        found.setdefault(gene, label)
    if not found:
        raise GeneError(f"{opened.cells.path}: no gene is higher in one {labels_key} than in the others: name genes.")
    return found


def _scale_values(mean: np.ndarray, scale: GroupScale, library_size: float | str) -> tuple[np.ndarray, str]:
    """Values to draw, and their unit."""
    if scale == "gene":
        low, high = mean.min(axis=0), mean.max(axis=0)
        return (mean - low) / np.maximum(high - low, 1e-300), "mean expression, of each gene from 0 to 1"
    unit = f"mean {name_unit(library_size, 'linear')}"
    return (np.log1p(mean), f"log(1 + {unit})") if scale == "log" else (mean, unit)


def draw_groups(found: GroupValues, title: str, style: Style, map_name: str = NUMBERS) -> "Figure":
    """A figure: a row for each group, a column for each gene; call it, and write its figure, inside `drawing`."""
    from matplotlib.figure import Figure

    line, field = style.line, FIELD * style.line
    groups = [f"{shorten(name)}  ({size:,})" for name, size in zip(found.groups, found.sizes)]
    genes, owners = [shorten(name) for name in found.genes], [shorten(name, 24) for name in found.groups]
    n_groups, n_genes = found.values.shape
    left = max(map(style.measure, groups)) + line
    below = max(map(style.measure, genes)) + 0.8 * line
    unit = wrap(found.unit, 22)
    beside = 1.5 * line + max(style.measure(text, 0.9) for text in (SHARES, *unit))
    if style.width is not None:
        field = (style.width - left - beside - 2 * BORDER) / n_genes
        if field < 0.4 * line:
            raise QueryError(
                f"width is {style.width:g} inches, too little for {n_genes:,} genes and the names beside them: make "
                "the picture wider, the font smaller, or name fewer genes."
            )
    inner = n_genes * field, n_groups * field
    width = inner[0] + left + beside + 2 * BORDER
    heading = style.wrap(title if style.title is None else style.title, width - 2 * BORDER, TITLE, bold=True)
    above = 0.6 * line + 1.4 * line * len(heading.splitlines())
    above += 0 if found.owners is None else max(map(style.measure, owners)) + 1.2 * line
    dots = 0.0 if found.shares is None else (len(SHOWN_SHARES) + 0.3) * field
    unit_at = 0.0 if found.shares is None else dots + 2 * line  # from the top of the fields down
    bar_at = unit_at + (len(unit) + 0.3) * line
    height = max(inner[1] + below, bar_at + (BAR + 0.5) * line) + above + 2 * BORDER
    figure = Figure(figsize=(width, height), facecolor=style.paper)
    bottom = height - BORDER - above - inner[1]
    axes = figure.add_axes(((left + BORDER) / width, bottom / height, inner[0] / width, inner[1] / height))
    axes.set_facecolor(style.paper)
    axes.set(xlim=(-0.5, n_genes - 0.5), ylim=(n_groups - 0.5, -0.5))
    axes.set_xticks(range(n_genes), genes, rotation=90)
    axes.set_yticks(range(n_groups), groups)
    axes.tick_params(length=0, labelsize=style.font_size)
    for side in axes.spines.values():
        side.set_visible(found.shares is not None)
    top = (height - BORDER) / height
    figure.text(BORDER / width, top, heading, va="top", size=TITLE * style.font_size, weight="bold")
    values = found.values.astype(np.float32)
    numbers = Numbers("", values, found.unit, _find_range(values), map_name)
    if found.shares is None:
        colours = find_map(map_name)
        low, high = numbers.find_limits()
        axes.imshow(found.values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none")
    else:
        _draw_dots(axes, found.values, found.shares, numbers, field)
        _add_share_legend(axes, style, dots, inner)
    if found.owners is not None:
        _draw_brackets(axes, found.owners, owners, style, inner[1])
    left = 1 + line / inner[0]
    axes.text(
        left, 1 - unit_at / inner[1], "\n".join(unit), va="top", size=0.9 * style.font_size, transform=axes.transAxes
    )
    below_axes = 1 - (bar_at + BAR * line) / inner[1]
    add_colour_bar(axes, numbers, style, (left, below_axes, 0.6 * line / inner[0], BAR * line / inner[1]))
    return figure


def _find_range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + max(abs(low), 1e-6))


def _draw_dots(axes: "Axes", values: np.ndarray, shares: np.ndarray, numbers: Numbers, field: float) -> None:
    low, high = numbers.find_limits()
    rows, columns = np.indices(values.shape)
    axes.scatter(
        columns.ravel(),
        rows.ravel(),
        s=_dot_area(shares.ravel(), field),
        c=values.ravel(),
        cmap=find_map(numbers.map_name),
        vmin=low,
        vmax=high,
        linewidths=0,
    )


def _dot_area(shares: Any, field: float) -> Any:
    """Area of a dot in square points, in proportion to the share of cells."""
    return np.asarray(shares) * (0.92 * field * 72) ** 2


def _add_share_legend(axes: "Axes", style: Style, high: float, inner: tuple[float, float]) -> None:
    """Dots of some sizes, to the right of the plot, from its top; `high` inches, below a line of text."""
    places, field = np.arange(len(SHOWN_SHARES))[::-1], high / (len(SHOWN_SHARES) + 0.3)
    left, top = 1 + style.line / inner[0], 1 - 1.2 * style.line / inner[1]
    axes.text(left, 1, SHARES, va="top", size=0.9 * style.font_size, transform=axes.transAxes)
    room = axes.inset_axes((left, top - high / inner[1], 2 * field / inner[0], high / inner[1]))
    room.scatter(np.zeros(len(places)), places, s=_dot_area(SHOWN_SHARES, field), c=style.faint, linewidths=0)
    room.set(xlim=(-0.5, 1.5), ylim=(-0.65, len(places) - 0.35))
    room.axis("off")
    for share, place in zip(SHOWN_SHARES, places):
        room.text(0.6, place, f"{share:.0%}", va="center")


def _draw_brackets(axes: "Axes", owners: list[int], names: list[str], style: Style, height: float) -> None:
    """Above the genes, whose markers they are."""
    at, up, transform = 0, 0.35 * style.line / height, axes.get_xaxis_transform()
    for owner, members in groupby(owners):
        n = len(list(members))
        ends = [at - 0.35, at + n - 0.65], [1 + up, 1 + up]
        axes.plot(*ends, color=style.ink, linewidth=0.8, transform=transform, clip_on=False)
        centred: dict[str, Any] = {"ha": "center", "va": "bottom", "transform": transform}
        axes.text(at + (n - 1) / 2, 1 + 2 * up, names[owner], rotation=90, **centred)
        at += n
