"""Cells in the plane, one panel for each obs column and each gene."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from atlasvi.engine.minified.kept_posterior import EMBEDDING
from atlasvi.engine.plots.colouring import Categories, Colouring, Numbers, colour_column, colour_genes, shorten
from atlasvi.engine.plots.map_labels import Label, find_anchors, spread_labels
from atlasvi.engine.plots.palettes import NUMBERS, OKABE_ITO, find_map
from atlasvi.engine.plots.picture_file import check_size, find_format, write_picture
from atlasvi.engine.plots.point_raster import FINE, PixelGrid, choose_shape, draw_points, paint, thin_cells
from atlasvi.engine.plots.style import MOST_PANEL_PIXELS, Style, drawing
from atlasvi.engine.queries.opened_question import Asked, OpenedQuestion, ask
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError, need_at_least
from atlasvi.engine.queries.shared_draws import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Labels = Literal["auto", "names", "numbers", "none"]
PANEL = 44  # width of a panel, in letters of the font's size: 4.9 inches for 8 points
LEAST_PANEL = 0.8  # inches
BORDER = 0.12  # inches around the picture
TITLE = 1.6  # size of the title's letters, in that of names
INK = 90_000  # square points that all discs together would cover, if none lay on another, in a panel of WIDE points
WIDE = 352  # a panel for a font of 8 points; in a smaller one, discs are smaller in proportion
DISCS = (0.24, 4.0)  # smallest and largest diameter of a disc, in points
MANY_CELLS = 300_000  # of more cells, a gene is decoded for one in each pixel alone
ENOUGH_CELLS = 400_000  # of which the places of names are found


def plot_embedding(
    asked: Asked,
    out: str | Path | None = None,
    *,
    by: Sequence[str] = (),
    genes: Sequence[str] = (),
    chosen: np.ndarray | None = None,
    style: Style | None = None,
    labels: Labels = "auto",
    per_row: int | None = None,
    point_size: float | None = None,
    map_name: str = NUMBERS,
    limits: tuple[float, float] | None = None,
    library_size: float | str = 10_000,
    scale: Literal["log", "linear"] = "log",
    transform_batch: Any = None,
    replace: bool = False,
    progress: Report = lambda stage, done, total: None,
) -> "Figure":
    """Cells at their coordinates, obsm['X_umap'] (`embed` writes them), with a panel for each column and each gene.

    out         .png, .svg or .pdf; None: only the figure is returned
    by          obs columns: categories have a legend, numbers a colour bar (with more than forty different ones)
    genes       genes, coloured by their decoded expression; with neither, all cells have one colour
    chosen      ascending int64 indices of the cells to show; None: all
    labels      on the map, of categories whose cells lie together. auto: names, if there are more than eight and there
                is room for them, otherwise numbers, which the legend explains
    per_row     panels beside each other; None: two
    point_size  diameter of a cell, in points; None: by their number
    map_name, limits  colour map of numbers and genes, and the ends of their scale; None: all but 0.5% at either end
    library_size, scale, transform_batch  of genes, see `colour_genes`
    replace     whether a file of this name may be replaced
    Where cells lie on each other, each pixel shows one of them at random. Of more than 300,000 cells, a gene is decoded
    for one cell in each pixel.
    Raises SourceError where there are no coordinates, ColumnError for an unknown column, GeneError for an unknown gene,
    QueryError for a choice without cells, MissingDependencyError without matplotlib, OutputError if `out` can't be
    written.
    """
    style = style or Style()
    if out is not None:
        find_format(out, replace)
    if labels not in get_args(Labels):
        raise QueryError(f"labels is {labels!r}: use one of {', '.join(get_args(Labels))}.")
    need_at_least(1, per_row=per_row)
    if limits is not None and not limits[0] < limits[1]:
        raise QueryError(f"limits are {limits[0]:g} and {limits[1]:g}: the first must be lower than the second.")
    with drawing(style):
        find_map(map_name)
        opened = ask(asked)
        places = _read_places(opened, chosen)
        panels: list[tuple[np.ndarray | None, Colouring]] = [
            (None, colour_column(opened.cells, name, chosen, limits, map_name)) for name in by
        ]
        if genes:
            thinned = _thin(places) if len(places) > MANY_CELLS else None
            cells = thinned if chosen is None or thinned is None else chosen[thinned]
            coloured = colour_genes(
                opened,
                genes,
                chosen if cells is None else cells,
                library_size=library_size,
                scale=scale,
                transform_batch=transform_batch,
                limits=limits,
                map_name=map_name,
                progress=progress,
            )
            panels += [(thinned, each) for each in coloured]
        if not panels:
            panels = [(None, Categories("", np.zeros(len(places), np.int16), [""], 1))]
        title = "" if style.title is None else style.title
        figure = draw_figure(
            places, panels, style, title, f"{len(places):,} cells", "UMAP", labels, per_row, point_size, progress
        )
        if out is not None:
            write_picture(figure, out, style, replace)
    return figure


def _read_places(opened: OpenedQuestion, chosen: np.ndarray | None) -> np.ndarray:
    """float32 [cells, 2]. Raises SourceError where there are none, QueryError if all are NaN."""
    cells = opened.cells
    if not isinstance(cells, MinifiedCells):
        raise QueryError(
            f"{cells.path}: a picture of cells needs coordinates, which a minified store can hold: atlasvi embed MINI "
            "writes them, atlasvi query MINI plot embedding draws them."
        )
    places = cells.kept.read_embedding(chosen)
    if not np.isfinite(places).all(axis=1).any():
        raise QueryError(f"{cells.path}: obsm {EMBEDDING} has no numbers for these cells: write it again.")
    return places


def _thin(places: np.ndarray) -> np.ndarray:
    """Ascending int64: one cell in each of some million pixels."""
    return thin_cells(PixelGrid(*_find_extent(places), 1200, 1200), places)


def _find_extent(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest coordinates of the cells that have some, float64 [2] each."""
    known = places[np.isfinite(places).all(axis=1)]
    return known.min(axis=0).astype(np.float64), known.max(axis=0).astype(np.float64)


def draw_figure(
    places: np.ndarray,
    panels: Sequence[tuple[np.ndarray | None, Colouring]],
    style: Style,
    title: str,
    subtitle: str,
    method: str,
    labels: Labels = "auto",
    per_row: int | None = None,
    point_size: float | None = None,
    progress: Report = lambda stage, done, total: None,
) -> "Figure":
    """A figure of panels; call it, and write its figure, inside `drawing`.

    places  float32 [cells, 2], NaN for cells that are not shown
    panels  (int64 indices of the cells that are shown, None: all; their colours), for each panel
    """
    from matplotlib.figure import Figure

    low, high = _find_extent(places)
    per_row = min(len(panels), per_row or 2)
    shape, line = choose_shape(low, high), style.line
    panel, widths = _choose_widths([colouring for _, colouring in panels], style, shape, per_row)
    n_rows = math.ceil(len(panels) / per_row)
    panel, panel_height = (round(length * style.dpi) / style.dpi for length in (panel, shape * panel))
    row_height, width = panel_height + 2.6 * line, 2 * BORDER + per_row * (panel + line) + sum(widths)
    title = style.wrap(title, width - 2 * BORDER, TITLE, bold=True)
    title_height = 1.4 * line * len(title.splitlines()) + 0.1 * line * bool(title)
    head = title_height + (1.1 * line if subtitle else 0) + BORDER
    height = head + n_rows * row_height + BORDER
    check_size(max(panel, panel_height), style, "panel", MOST_PANEL_PIXELS)
    check_size(max(width, height), style)
    figure = Figure(figsize=(width, height), facecolor=style.paper)
    at = height - BORDER
    for text, size, weight in ((title, TITLE, "bold"), (subtitle, 1.1, "normal")):
        figure.text(BORDER / width, at / height, text, va="top", size=size * style.font_size, weight=weight)
        at -= title_height
    grid = PixelGrid(low, high, round(panel * style.dpi), round(panel_height * style.dpi))
    for number, (shown, colouring) in enumerate(panels):
        row, column = divmod(number, per_row)
        left = BORDER + line + column * (panel + line) + sum(widths[:column])  # a line for the name of the axis
        bottom = height - head - (row + 1) * row_height + 1.2 * line
        left, bottom = (round(length * style.dpi) / style.dpi for length in (left, bottom))
        axes = figure.add_axes((left / width, bottom / height, panel / width, panel_height / height))
        own = places if shown is None else places[shown]
        _draw_panel(axes, grid, own, colouring, style, method, labels, point_size)
        progress("drawing", number + 1, len(panels))
    return figure


def _choose_widths(
    colourings: Sequence[Colouring], style: Style, shape: float, per_row: int
) -> tuple[float, list[float]]:
    """The width of a panel, and of what is beside the panels of each column, in inches."""
    panel, widths = PANEL * style.font_size / 72, list[float]()
    for _ in range(1 if style.width is None else 4):  # a smaller panel has fewer rows of a legend, which is wider then
        sides = [_measure_side(colouring, style, shape * panel) for colouring in colourings]
        widths = [max(sides[at::per_row]) for at in range(per_row)]
        if style.width is not None:
            panel = (style.width - 2 * BORDER - sum(widths)) / per_row - style.line
            if panel < LEAST_PANEL:
                raise QueryError(
                    f"width is {style.width:g} inches, of which legends take {sum(widths):.1f}: make the picture "
                    "wider, the font smaller, or show fewer panels in a row."
                )
    return panel, widths


def _measure_side(colouring: Colouring, style: Style, height: float) -> float:
    """Width of the legend or the colour bar of a panel of this height, in inches."""
    if isinstance(colouring, Numbers):
        texts = [f"{value:.3g}" for value in colouring.find_limits()] + ["0.000"]
        return (3.6 if colouring.unit else 2.2) * style.line + max(map(style.measure, texts))
    if _is_plain(colouring):
        return 0.0
    return sum(width for _, width in _split_legend(colouring, style, height)) + style.line


def _is_plain(colouring: Categories) -> bool:
    """Whether all cells have one colour, that stands for nothing."""
    return not colouring.title and colouring.names == [""]


def _split_legend(colouring: Categories, style: Style, height: float) -> list[tuple[list[int], float]]:
    """The columns of a legend beside a panel of this height, in inches: places in the list of names, and width.

    The place after the last name is that of missing values.
    """
    names = [*colouring.names, *["missing"] * bool((colouring.codes < 0).any())]
    rows = max(int(height / (0.95 * style.line)), 4)
    n_columns = math.ceil(len(names) / rows)
    rows = math.ceil(len(names) / max(n_columns, 1)) or 1
    columns = [list(range(start, min(start + rows, len(names)))) for start in range(0, len(names), rows)]
    wide = [max(style.measure(f"{len(names)}  {names[place]}") for place in column) for column in columns]
    return [(column, width + 1.5 * style.line) for column, width in zip(columns, wide)]


def _draw_panel(
    axes: "Axes",
    grid: PixelGrid,
    places: np.ndarray,
    colouring: Colouring,
    style: Style,
    method: str,
    labels: Labels,
    point_size: float | None,
) -> None:
    n_cells = max(int(np.isfinite(places[:, 0]).sum()), 1)
    wide = 72 * grid.width / style.dpi
    usual = min(math.sqrt(INK / n_cells), DISCS[1]) * wide / WIDE
    diameter = max(usual, DISCS[0]) if point_size is None else point_size
    picture = paint(
        draw_points(grid, places, diameter * style.dpi / 72, colouring.find_layers()), colouring.paint(style), FINE
    )
    axes.imshow(picture, extent=(0, 1, 1, 0), aspect="auto", interpolation="none")
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    axes.set_facecolor(style.paper)
    for side in axes.spines.values():
        side.set_visible(False)
    small: dict[str, Any] = {"size": 0.9 * style.font_size, "color": style.faint}
    axes.set_xlabel(f"{method} 1", loc="left", labelpad=2, **small)
    axes.set_ylabel(f"{method} 2", loc="bottom", labelpad=2, **small)
    heading = shorten(colouring.title, max(int(0.8 * grid.width / style.dpi / style.measure("n", 1.3)), 10))
    if isinstance(colouring, Numbers):
        axes.set_title(heading, loc="left", size=1.3 * style.font_size, pad=4)
        add_colour_bar(axes, colouring, style)
        return
    if _is_plain(colouring):
        return
    axes.set_title(f"{heading} ({colouring.n_total:,})", loc="left", size=1.3 * style.font_size, pad=4)
    placed, is_numbered = _choose_labels(grid, places, colouring, style, labels)
    _draw_labels(axes, placed, style)
    _add_legend(axes, colouring, style, grid, is_numbered)


def add_colour_bar(
    axes: "Axes", numbers: Numbers, style: Style, room: tuple[float, float, float, float] | None = None
) -> None:
    """A colour bar with pointed ends where cells lie beyond them.

    room  left, bottom, width and height in shares of the axes; None: to the right of a panel, with its unit
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    assert axes.figure is not None
    low, high = numbers.find_limits()
    known = numbers.values[np.isfinite(numbers.values)]
    under, over = bool((known < low).any()), bool((known > high).any())
    wide = 0.6 * style.line / (axes.bbox.width / axes.figure.dpi)
    bar = axes.figure.colorbar(
        ScalarMappable(Normalize(low, high), find_map(numbers.map_name)),
        cax=axes.inset_axes(room or (1 + wide, 0.25, wide, 0.5)),
        extend={(True, True): "both", (True, False): "min", (False, True): "max"}.get((under, over), "neither"),
        extendfrac=0.04,
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=style.font_size, length=2, width=0.6, color=style.faint, labelcolor=style.ink)
    bar.ax.locator_params(nbins=5)
    if numbers.unit and room is None:
        bar.set_label(numbers.unit, size=0.9 * style.font_size, color=style.ink)


def _choose_labels(
    grid: PixelGrid, places: np.ndarray, colouring: Categories, style: Style, labels: Labels
) -> tuple[list[Label], bool]:
    """The labels on the map, and whether they are the numbers of the legend."""
    n = len(colouring.names) - colouring.has_others
    if labels == "none" or (labels == "auto" and n <= len(OKABE_ITO)) or n < 2:
        return [], False
    some = slice(None, None, max(len(places) // ENOUGH_CELLS, 1))
    shares = grid.find_pixels(places[some]) / (grid.width, grid.height)
    codes = colouring.codes[some]
    anchors = find_anchors(shares, np.where(codes < n, codes, -1), n)
    wide, high = grid.width / style.dpi, grid.height / style.dpi

    def measure(texts: dict[int, str]) -> dict[int, tuple[float, float]]:
        return {
            code: (1.05 * style.measure(text, bold=True) / wide, 0.9 * style.line / high)
            for code, text in texts.items()
        }

    names = {code: colouring.names[code] for code in anchors}
    if labels != "numbers":
        found = spread_labels(names, anchors, measure(names))
        if found is not None:
            return found, False
    numbers = {code: str(code + 1) for code in anchors}
    found = spread_labels(numbers, anchors, measure(numbers))
    at_anchors = [Label(code, numbers[code], anchor, anchor) for code, anchor in anchors.items()]
    return found if found is not None else at_anchors, bool(anchors)


def _draw_labels(axes: "Axes", labels: list[Label], style: Style) -> None:
    from matplotlib.patheffects import withStroke

    around = [withStroke(linewidth=0.28 * style.font_size, foreground=style.paper)]
    for label in labels:
        away = math.dist(label.anchor, label.place)
        if away > 0.05:
            axes.plot(*zip(label.anchor, label.place), color=style.ink, linewidth=0.5, alpha=0.7)
        axes.text(*label.place, label.text, ha="center", va="center", weight="bold", path_effects=around)


def _add_legend(axes: "Axes", colouring: Categories, style: Style, grid: PixelGrid, is_numbered: bool) -> None:
    """The names of the categories beside the panel, in columns."""
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

    wide, line = grid.width / style.dpi, style.line
    names = [f"{code + 1}  {name}" if is_numbered else name for code, name in enumerate(colouring.names)]
    if is_numbered and colouring.has_others:
        names[-1] = colouring.names[-1]
    names, colours = [*names, "missing"], [*colouring.list_colours(style), style.missing]
    left = 1 + 0.4 * line / wide
    for column, width in _split_legend(colouring, style, grid.height / style.dpi):
        dots = [
            Line2D([], [], marker="o", linestyle="", markersize=0.75 * style.font_size, mew=0, color=colours[place])
            for place in column
        ]
        legend = Legend(
            axes,
            dots,
            [names[place] for place in column],
            loc="upper left",
            bbox_to_anchor=(left, 1.0),
            frameon=False,
            fontsize=style.font_size,
            labelcolor=style.ink,
            handletextpad=0.2,
            handlelength=1.2,
            labelspacing=0.28,
            borderpad=0,
            borderaxespad=0,
        )
        axes.add_artist(legend)
        left += width / wide
