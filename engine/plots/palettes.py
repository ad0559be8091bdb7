"""Colours of categories, told apart by colour-blind readers too, and colour maps of numbers."""

from typing import Any

from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.tables.store_tables import suggest_names

# Okabe & Ito's colours, distinct for all kinds of colour vision; the yellow is darker, to be visible on white.
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#d9c927", "#666666")

# Each of these is as far as possible from all before it, from white, black and the greys of missing cells: the least of
# the distances in OKLab as seen with all cones, without the red ones and without the green ones (Machado, Oliveira and
# Fernandes 2009, IEEE TVCG 15:1291). For any two of the forty it is at least 0.066, 0.047 and 0.047; for matplotlib's
# tab20 and tab20b together 0.023, 0.005 and 0.008.
MORE = (
    *("#540060", "#0000fc", "#6c1800", "#3c00a8", "#8478fc", "#a83024", "#78cc90", "#603c60"),
    *("#d818cc", "#3c4890", "#60f084", "#a8ccfc", "#84c0c0", "#fc5460", "#600c3c", "#600ccc"),
    *("#846c90", "#900c3c", "#6c9cfc", "#6054fc", "#186084", "#480084", "#cc1854", "#00a8c0"),
    *("#a8c060", "#789048", "#5478d8", "#e478cc", "#306000", "#6c3cb4", "#9ca884", "#24e4b4"),
)
NUMBERS = "viridis"  # readable in all kinds of colour vision, and in grey


DIM = 0.1  # luminance below which a colour is hard to see on a dark ground


def choose_colours(n_colours: int, dark: bool = False) -> list[str]:
    """Distinct colours for up to forty categories, the most distinct ones first; on a dark ground dim ones last."""
    more = sorted(MORE, key=lambda colour: _find_luminance(colour) < DIM) if dark else MORE  # sorted keeps the order
    return [*OKABE_ITO, *more][:n_colours]


def _find_luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, from 0 for black to 1 for white (as WCAG defines it)."""
    red, green, blue = ((int(colour[at : at + 2], 16) / 255) ** 2.2 for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def find_map(name: str) -> Any:
    """A colour map of matplotlib. Raises QueryError, with similar names, if there is none of this name."""
    import matplotlib

    if name not in matplotlib.colormaps:
        some = "viridis, cividis, magma, inferno"
        raise QueryError(
            f"There is no colour map {name!r} (some that colour-blind readers see well: {some})."
            f"{suggest_names(name, list(matplotlib.colormaps))}"
        )
    return matplotlib.colormaps[name]
