"""A figure as a file, in the format that its name says."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasvi.engine.plots.style import MOST_PIXELS, Style, drawing
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.outputs import check_output_free, making_parents, need_local_output, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Without the time of writing, the same picture is the same file.
UNDATED: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def find_format(out: str | Path, replace: bool = True) -> str:
    """png, svg or pdf, by the ending of a name; png without an ending.

    Raises QueryError for another ending, OutputError if there is a file of the name that may not be replaced.
    """
    ending = Path(out).suffix.lower()
    if ending not in ("", ".png", ".svg", ".pdf"):
        raise QueryError(f"{out}: the name of a picture ends in .png, .svg or .pdf, which is its format.")
    if not replace:
        check_output_free(out)
    return ending.removeprefix(".") or "png"


def check_size(longest: float, style: Style, what: str = "picture", most: int = MOST_PIXELS) -> None:
    """Raise QueryError if the longer side of a picture or a part, `longest` inches, would have too many pixels."""
    if longest * style.dpi > most:
        raise QueryError(
            f"The {what} would be {longest:.0f} inches long, {longest * style.dpi:,.0f} pixels, and up to {most:,} can "
            "be drawn: show fewer groups or genes, or use a smaller width, dpi or font."
        )


def write_picture(figure: "Figure", out: str | Path, style: Style, replace: bool = True) -> None:
    """Write a figure as a complete file or not at all.

    replace  whether a file of this name may be replaced
    Raises QueryError for an ending that is no format, or a picture of too many pixels, OutputError if the file can't be
    written.
    """
    form = find_format(out, replace)
    check_size(max(figure.get_size_inches()), style)
    picture = io.BytesIO()
    with drawing(style):
        figure.savefig(picture, format=form, dpi=style.dpi, facecolor=style.paper, metadata=UNDATED[form])
    path = need_local_output(out)
    try:
        with making_parents(path):
            find_format(out, replace)
            write_whole(path, picture.getvalue())
    except OSError as error:
        raise OutputError(f"{out}: the picture can't be written there ({error.strerror}).") from error
