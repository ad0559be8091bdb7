"""The picture of the latent space: a point per cell, coloured by a column; choosing a category fades the others.

Eight colours that all kinds of colour vision tell apart, times four shapes, name 32 categories; where a category's
cells lie together, its number stands on the map as well. Choosing works by radio buttons and CSS, without a script.
"""

from collections.abc import Sequence

import numpy as np

from atlasvi.engine.card.model_card import Colouring, LatentPicture
from atlasvi.engine.card.page.axes import picture
from atlasvi.engine.card.page.markup import Content, Markup, tag
from atlasvi.engine.card.page.palette import N_COLOURS

SIZE, MARGIN = 480.0, 14.0
SHAPES = ("h0", "h0", "m-2-2l4 4m0-4l-4 4", "m-2.4 0h4.8m-2.4-2.4v4.8")  # dot, square (by its line's cap), cross, plus
SHAPE_NAMES = ("dot", "square", "cross", "plus")
MOST_CATEGORIES = N_COLOURS * len(SHAPES) - 1  # and one for the others
SLICES = 6  # points are drawn in turns, so that no category hides all others
TOGETHER = 0.3  # of the map's spread: a category whose cells are closer than this to their middle gets its number


def draw_map(points: LatentPicture, colouring: Colouring, name: str) -> tuple[Markup, Markup]:
    """The map, and the buttons that name its categories. name: of this map on the page, a letter and letters."""
    codes, titles, sizes = largest_categories(colouring)
    places = np.array([points.x, points.y], float).T.reshape(-1, 2)
    known = np.isfinite(places).all(1)
    places, codes = _fit(places[known]), codes[known]
    drawn: list[Content] = []
    for part in range(SLICES):
        for group in [-1, *range(len(titles))]:
            here = np.flatnonzero((codes == group) & (np.arange(len(codes)) % SLICES == part))
            if len(here):
                drawn.append(_points(places[here], group))
    drawn.append(tag("g", _numbers(places, codes, len(titles)), class_="numbers"))
    alternative = (
        f"Map of {len(codes):,} cells by {points.method}, coloured by {colouring.column}: "
        + ", ".join(f"{title} ({n:,})" for title, n in zip(titles[:8], sizes))
        + (f" and {len(titles) - 8} more" if len(titles) > 8 else "")
        + "."
    )
    return picture(SIZE, alternative, drawn, width=SIZE), _buttons(name, colouring.column, titles, sizes)


def largest_categories(colouring: Colouring) -> tuple[np.ndarray, list[str], list[int]]:
    """Codes by descending size (int [points], -1: missing), names and numbers of points of the categories that occur.

    With more than `MOST_CATEGORIES`, the rarest are one last category.
    """
    codes = np.asarray(colouring.codes, int)
    counts = np.bincount(codes[codes >= 0], minlength=len(colouring.names))
    order = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code]]
    titles, sizes = [colouring.names[code] for code in order], [int(counts[code]) for code in order]
    new = np.full(len(counts) + 1, -1)  # the last is for -1
    new[order] = np.minimum(np.arange(len(order)), MOST_CATEGORIES)
    if len(order) > MOST_CATEGORIES:
        others = len(order) - MOST_CATEGORIES
        titles = [*titles[:MOST_CATEGORIES], f"{others} others"]
        sizes = [*sizes[:MOST_CATEGORIES], sum(sizes[MOST_CATEGORIES:])]
    return new[codes], titles, sizes


def choosing_rules() -> str:
    """CSS: when the button of a category is chosen, the points of all others fade."""
    return "\n".join(
        f'.map:has(input[value="{group}"]:checked) .p:not(.g{group}) {{ opacity: 0.07; }}'
        for group in range(MOST_CATEGORIES + 1)
    )


def _points(places: np.ndarray, group: int) -> Markup:
    shape = SHAPES[max(group, 0) // N_COLOURS]
    path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in places)
    return tag("path", d=path, class_=f"p g{group} {_style(group)}" if group >= 0 else "p missing dot")


def _style(group: int) -> str:
    return f"c{group % N_COLOURS} {SHAPE_NAMES[group // N_COLOURS]}"


def _numbers(places: np.ndarray, codes: np.ndarray, n_groups: int) -> list[Markup]:
    spread = np.linalg.norm(places - np.median(places, 0), axis=1).mean() if len(places) else 0
    found: list[Markup] = []
    taken: list[np.ndarray] = []
    for group in range(n_groups):
        here = places[codes == group]
        middle = np.median(here, 0)
        distances = np.linalg.norm(here - middle, axis=1)
        if n_groups > 1 and np.median(distances) <= TOGETHER * spread:
            at = here[np.argmin(distances)]  # a cell of it: between two islands there is nothing
            while any(np.abs(at - other).max() < 13 for other in taken):
                at = at + np.array([0, 4.0])
            taken.append(at)
            found.append(tag("text", str(group + 1), x=float(at[0]), y=float(at[1]) + 4, text_anchor="middle"))
    return found


def _buttons(name: str, column: str, titles: Sequence[str], sizes: Sequence[int]) -> Markup:
    def button(value: int, *content: Content) -> Markup:
        chosen = tag("input", type="radio", name=f"show-{name}", value=str(value), checked=value < 0)
        return tag("label", chosen, content)

    every = button(-1, tag("span", "All"))
    buttons = [
        button(
            group,
            tag(
                "svg",
                tag("path", d=f"M6 6{SHAPES[group // N_COLOURS]}", class_=f"p {_style(group)}"),
                viewBox="1.5 1.5 9 9",
                width=16,
                height=16,
                aria_hidden="true",
            ),
            tag("span", tag("b", str(group + 1)), " ", title),
            tag("span", f"{size:,}", class_="n"),
        )
        for group, (title, size) in enumerate(zip(titles, sizes))
    ]
    return tag("fieldset", tag("legend", f"Show by {column}"), every, buttons, class_="choose")


def _fit(places: np.ndarray) -> np.ndarray:
    """Coordinates in the picture, with the same scale on both axes and y upwards."""
    if not len(places):
        return places
    low, high = places.min(0), places.max(0)
    scale = (SIZE - 2 * MARGIN) / max(float((high - low).max()), 1e-12)
    return SIZE / 2 + (places - (low + high) / 2) * scale * [1, -1]
