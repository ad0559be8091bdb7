"""Charts of a card as SVG: lines, densities, dots with errors. What they show is given as plain values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import Density
from atlasvi.engine.card.page.axes import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    draw_axes,
    picture,
    widened,
    write_tick,
)
from atlasvi.engine.card.page.markup import Content, Markup, decimal, tag
from atlasvi.engine.card.page.palette import N_LEVELS

HEIGHT = 250.0
ROW, NAMES = 20.0, 124.0  # of a chart of dots: height of a row, width of the names
LONGEST = 18  # letters of a name in a chart
DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Line:
    """A named line. Values that are not finite are left out; style: which colour and dash (a part has the same one
    everywhere)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0


@dataclass(frozen=True)
class Dots:
    """A value per row, with its error."""

    name: str
    values: Sequence[Estimate | None]
    style: int = 0


def line_chart(
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    alternative: str,
    *,
    diagonal: bool = False,
    level: float | None = None,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    points: bool = False,
) -> Markup:
    """Lines over x; `diagonal` draws where x and y are equal, `level` a horizontal line, `points` a mark at each."""
    known = [[(a, b) for a, b in zip(each.x, each.y) if math.isfinite(a) and math.isfinite(b)] for each in lines]
    x = Scale(*(x_range or widened([a for each in known for a, _ in each], 0)), LEFT, WIDTH - RIGHT)
    y = Scale(*(y_range or widened([b for each in known for _, b in each])), HEIGHT - BOTTOM, TOP)
    drawn: list[Content] = []
    if diagonal:
        low, high = max(x.low, y.low), min(x.high, y.high)
        drawn.append(tag("path", d=_path([(x(low), y(low)), (x(high), y(high))]), class_="reference"))
    if level is not None:
        drawn.append(tag("path", d=_path([(x.start, y(level)), (x.end, y(level))]), class_="reference"))
    for line, each in zip(lines, known):
        places = [(x(a), y(b)) for a, b in each]
        style = f"line s{line.style}"
        if len(places) > 1:
            drawn.append(tag("path", d=_path(places), class_=style, stroke_dasharray=DASHES[line.style] or None))
        if points or len(places) == 1:
            drawn += [mark(a, b, line.style) for a, b in places]
    return picture(HEIGHT, alternative, draw_axes(x, y, x_title, y_title), drawn)


def density_chart(density: Density, x_title: str, y_title: str, alternative: str) -> Markup:
    """Numbers of points in boxes, in shades whose steps are equal on a logarithmic scale; the diagonal is dashed."""
    xs, ys = density.x_edges, density.y_edges
    side = WIDTH - LEFT - RIGHT
    x = Scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT, log=True)
    y = Scale(ys[0], ys[-1], TOP + side, TOP, log=True)
    boxes: dict[int, list[str]] = {level: [] for level in range(N_LEVELS)}
    most = max((n for column in density.counts for n in column), default=0)
    for k, column in enumerate(density.counts):
        for j, n in enumerate(column):
            if n:
                left, right, low, high = x(xs[k]), x(xs[k + 1]), y(ys[j]), y(ys[j + 1])
                width, height = decimal(right - left), decimal(low - high)
                boxes[_level(n, most)].append(f"M{decimal(left)} {decimal(high)}h{width}v{height}h-{width}z")
    drawn = [tag("path", d="".join(each), class_=f"d{level}") for level, each in boxes.items() if each]
    low, high = max(xs[0], ys[0]), min(xs[-1], ys[-1])
    if low < high:
        drawn.append(tag("path", d=_path([(x(low), y(low)), (x(high), y(high))]), class_="reference over"))
    return picture(TOP + side + BOTTOM, alternative, draw_axes(x, y, x_title, y_title), tag("g", drawn, class_="boxes"))


def density_key(density: Density) -> Markup:
    """What the shades mean: the smallest number of points of each."""
    most = max((n for column in density.counts for n in column), default=0)
    first: dict[int, int] = {}
    for n in sorted({n for column in density.counts for n in column if n}):
        first.setdefault(_level(n, most), n)
    keys = [
        tag("li", _swatch(12, tag("rect", width=12, height=12, class_=f"d{level}")), f"from {write_tick(n)}")
        for level, n in first.items()
    ]
    return tag("ul", keys, class_="key", aria_label="Points in a box")


def dot_chart(
    rows: Sequence[str], dots: Sequence[Dots], x_title: str, alternative: str, *, low: float = 0.0, high: float = 1.0
) -> Markup:
    """One row per name, with a mark per series at its value and a bar of one standard error to each side."""
    known = [each.value for series in dots for each in series.values if each is not None and math.isfinite(each.value)]
    low, high = min([low, *known]), max([high, *known])
    bottom = TOP + ROW * len(rows)
    x, y = Scale(low, high, NAMES, WIDTH - RIGHT), Scale(len(rows), 0, bottom, TOP)
    grid = [tag("line", x1=x(value), x2=x(value), y1=TOP, y2=bottom) for value in x.ticks(5)]
    texts = [tag("text", write_tick(value), x=x(value), y=bottom + 16, text_anchor="middle") for value in x.ticks(5)]
    texts += [
        tag("text", shorten(name), tag("title", name), x=NAMES - 8, y=y(k + 0.5) + 4, text_anchor="end")
        for k, name in enumerate(rows)
    ]
    texts.append(tag("text", x_title, x=(x.start + x.end) / 2, y=bottom + 36, text_anchor="middle", class_="axis"))
    lanes = [tag("line", x1=x.start, x2=x.end, y1=y(k + 0.5), y2=y(k + 0.5)) for k in range(len(rows))]
    marks: list[Content] = []
    for n, series in enumerate(dots):
        shift = (n - (len(dots) - 1) / 2) * 5
        for k, each in enumerate(series.values):
            if each is None or not math.isfinite(each.value):
                continue
            at = y(k + 0.5) + shift
            if math.isfinite(each.error):
                ends = [(x(min(max(each.value + sign * each.error, low), high)), at) for sign in (-1, 1)]
                marks.append(tag("path", d=_path(ends), class_=f"line s{series.style}"))
            marks.append(mark(x(each.value), at, series.style))
    return picture(
        bottom + BOTTOM, alternative, tag("g", grid, lanes, class_="grid"), tag("g", texts, class_="ticks"), marks
    )


def series_key(names: Sequence[tuple[str, int]]) -> Markup:
    """Names of series beside their marks: (name, style)."""
    keys = [
        tag(
            "li",
            _swatch(
                28,
                tag("path", d="M0 6H28", class_=f"line s{style}", stroke_dasharray=DASHES[style] or None),
                mark(14, 6, style),
            ),
            name,
        )
        for name, style in names
    ]
    return tag("ul", keys, class_="key")


def mark(x: float, y: float, style: int) -> Markup:
    """A circle, diamond, square or triangle, so that series differ by more than colour."""
    shape = SHAPES[style % len(SHAPES)]
    return tag("path", d=f"M{decimal(x)} {decimal(y)}{shape}", class_=f"mark s{style}")


SHAPES = (
    "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z",
    "m0-4.6l4.6 4.6l-4.6 4.6l-4.6-4.6z",
    "m-3.3-3.3h6.6v6.6h-6.6z",
    "m0-4.4l4.4 7.8h-8.8z",
)


def _swatch(width: float, *content: Content) -> Markup:
    """A small picture in a key."""
    return tag("svg", *content, viewBox=f"0 0 {width} 12", width=width, height=12, aria_hidden="true")


def shorten(name: str) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1].rstrip()}…"


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{decimal(a)} {decimal(b)}" for a, b in places)


def _level(n: int, most: int) -> int:
    return min(N_LEVELS - 1, int(N_LEVELS * math.log(n) / math.log(most))) if most > 1 else N_LEVELS - 1
