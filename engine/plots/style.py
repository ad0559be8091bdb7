"""How a picture looks: sizes, fonts, light or dark. All lengths are inches, all letters points."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import MissingDependencyError

MOST_PIXELS = 30_000  # on a side of a picture; matplotlib draws up to 65,535
MOST_PANEL_PIXELS = 12_000  # on a side of a panel of cells, which is drawn at twice its size: 4.6 GB


@dataclass(frozen=True)
class Style:
    """How a picture looks.

    title      above the picture; None: of groups the name of their column, of cells none; '': none
    font_size  of names, in points; titles are larger, and what surrounds the picture grows with it
    width      of the whole picture, in inches; None: as its parts need it
    dpi        pixels in an inch, also of the points in an SVG or PDF
    dark       light text on a dark ground
    Raises QueryError for sizes that no picture can have.
    """

    title: str | None = None
    font_size: float = 8.0
    width: float | None = None
    dpi: int = 300
    dark: bool = False

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("font_size", self.font_size, 3, 40),
            ("width", self.width, 1, 100),
            ("dpi", self.dpi, 30, 1200),
        ):
            if value is not None and not low <= value <= high:
                raise QueryError(f"{name} is {value:g}: it must be from {low} to {high}.")

    @property
    def ink(self) -> str:
        """Colour of text."""
        return "#e8e8e8" if self.dark else "#222222"

    @property
    def faint(self) -> str:
        """Colour of text beside the matter, and of categories that are drawn as one."""
        return "#8a8a8a" if self.dark else "#999999"

    @property
    def missing(self) -> str:
        """Colour of cells without a value."""
        return "#484848" if self.dark else "#d5d5d5"

    @property
    def paper(self) -> str:
        """Colour of the ground."""
        return "#161616" if self.dark else "#ffffff"

    @property
    def line(self) -> float:
        """Height of a line of text, in inches."""
        return 1.45 * self.font_size / 72

    def measure(self, text: str, scale: float = 1.0, bold: bool = False) -> float:
        """Width of a text in inches, at `scale` times the font size."""
        return scale * self.font_size / 72 * _measure(text, bold)

    def wrap(self, text: str, width: float, scale: float = 1.0, bold: bool = False) -> str:
        """A text in lines of at most this width, in inches; a longer word has a line of its own."""
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.measure(longer, scale, bold) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        return "\n".join(lines)


@cache
def _measure(text: str, bold: bool) -> float:
    """Width of a text in its own font size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    renderer = FigureCanvasAgg(Figure(dpi=72)).get_renderer()
    font = FontProperties(size=100, weight="bold" if bold else "normal")
    return renderer.get_text_width_height_descent(text, font, ismath=False)[0] / 100 if text else 0.0


@contextmanager
def drawing(style: Style) -> Iterator[None]:
    """matplotlib's settings while a picture is drawn and written. Raises MissingDependencyError without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("A picture needs matplotlib: pip install 'atlasvi[plots]'.") from error
    with rc_context(
        {
            "text.parse_math": False,  # a dollar sign in a name must not start a formula
            "font.size": style.font_size,
            "text.color": style.ink,
            "axes.labelcolor": style.ink,
            "axes.edgecolor": style.faint,
            "xtick.color": style.ink,
            "ytick.color": style.ink,
            "axes.linewidth": 0.6,
            "svg.fonttype": "none",  # text stays text, which can be searched and edited
            "pdf.fonttype": 42,
            "svg.hashsalt": "atlasvi",  # the same picture is the same file
        }
    ):
        yield
