"""A picture of the latent space: every cell is a point, and each column of `obs` has a panel."""

import io
import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from atlasvi.loaders.errors import ColumnError, MissingDependencyError, OutputError
from atlasvi.loaders.outputs import making_parents, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Measured on an idle core: the picture of 10,000 cells takes 10 s, 3 s of them for the map, the rest for imports and
# numba's compilation (15 s more at the first use after umap-learn is installed); 20,000 cells take 7 s more for a map
# that looks the same.
MAX_CELLS = 10_000
N_NEIGHBOURS = 15
N_EPOCHS = 200
MIN_DISTANCE = 0.4  # so that groups fill the panel; with UMAP's default of 0.1 they are dots
MAX_CATEGORIES = 40  # in the legend; the rarest others are drawn as one
LEGEND_ROWS = 20
PANEL = 4.4  # inches
LETTER = 0.068  # largest width of a letter of the legend, in inches
INK, FAINT, MISSING = "#333333", "#999999", "#d5d5d5"

# Okabe & Ito's colours, distinct for all kinds of colour vision; the yellow is darker, to be visible on white.
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#d9c927", "#666666")


def draw_latent(
    latent: np.ndarray,
    columns: dict[str, pd.Series],
    out_png: str | Path,
    seed: int,
    title: str = "Latent space",
    max_cells: int = MAX_CELLS,
) -> str:
    """Draw a map of the latent space, coloured by each of `columns`; returns the method, "UMAP" or "PCA".

    latent    float [cells, latent dimensions]
    columns   name and values [cells] of each panel (the index is ignored): categories, or numbers (with more than 40
              distinct ones a colour scale). With more than eight categories, numbers on the map mark those whose
              cells lie together.
    out_png   replaced if it exists
    With more than `max_cells` cells, a random subset of that size is drawn; the subset and UMAP depend on `seed`.
    UMAP is used if umap-learn is installed, else the first two principal components; the axes name the method.
    Raises MissingDependencyError without matplotlib, ColumnError without columns or for a column of another length,
    OutputError if the file can't be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the picture needs matplotlib: pip install 'atlasvi[plots]'.") from error
    if not columns:
        raise ColumnError("picture: there is no column to colour the cells by: name at least one.")
    for name, values in columns.items():
        if len(values) != len(latent):
            raise ColumnError(f"picture: column {name!r} has {len(values):,} values for {len(latent):,} cells.")

    rng = np.random.default_rng(seed)
    shown = rng.permutation(len(latent))[:max_cells]  # in random order, so that no category covers another
    method, places = place_cells(np.asarray(latent)[shown], seed)
    panels = [Colouring(name, values.iloc[shown].reset_index(drop=True)) for name, values in columns.items()]

    per_row = min(len(panels), 2)
    rows = [panels[start : start + per_row] for start in range(0, len(panels), per_row)]
    widths = [max(row[at].width for row in rows if at < len(row)) for at in range(per_row)]
    width, height = sum(widths) + PANEL * per_row + 0.5, 0.95 + len(rows) * (PANEL + 0.35)
    with rc_context({"text.parse_math": False}):  # a dollar sign in a name must not start a formula
        figure = Figure(figsize=(width, height), facecolor="white")
        cells = f"{len(latent):,} cells" + (f", {len(shown):,} drawn" if len(shown) < len(latent) else "")
        figure.text(0.25 / width, 1 - 0.22 / height, title, va="top", size=13, weight="bold", color=INK)
        made = f"{cells}; {method} of {latent.shape[1]} latent dimensions"
        figure.text(0.25 / width, 1 - 0.48 / height, made, va="top", size=9, color=INK)
        for number, panel in enumerate(panels):
            row, at = divmod(number, per_row)
            left = 0.25 + sum(widths[:at]) + PANEL * at
            bottom = height - 0.95 - (row + 1) * (PANEL + 0.35) + 0.35
            axes = figure.add_axes((left / width, bottom / height, PANEL / width, (PANEL - 0.15) / height))
            draw_panel(figure, axes, places, panel, method)
        write_picture(figure, Path(out_png))
    return method


def place_cells(latent: np.ndarray, seed: int) -> tuple[str, np.ndarray]:
    """Place cells, float [cells, d], in the plane: (method, float [cells, 2]); the longer side is horizontal."""
    latent = latent.astype(np.float64)
    components = find_components(latent)
    if len(latent) <= N_NEIGHBOURS:
        return "PCA", components
    try:
        with warnings.catch_warnings():  # umap-learn warns if tensorflow is missing
            warnings.simplefilter("ignore")
            import numba
            import umap
            from sklearn.neighbors import NearestNeighbors
    except ImportError:
        return "PCA", components
    distances, neighbours = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(latent).kneighbors(latent)
    threads = numba.get_num_threads()  # a seeded UMAP sets numba to one thread, and does not reset it if it fails
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            placed = umap.UMAP(
                n_neighbors=N_NEIGHBOURS,
                n_epochs=N_EPOCHS,
                min_dist=MIN_DISTANCE,
                init=10 * components / (np.abs(components).max() or 1),
                random_state=seed % 2**32,
                precomputed_knn=(neighbours, distances),
            ).fit_transform(latent)
    finally:
        numba.set_num_threads(threads)
    return "UMAP", find_components(placed.astype(np.float64))


def find_components(values: np.ndarray) -> np.ndarray:
    """First two principal components, float64 [n, 2], of [n, d]; zeros if there are fewer. Signs are fixed."""
    centred = values - values.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1, 1)
    components = np.zeros((len(values), 2))
    components[:, : axes.shape[1]] = centred @ axes
    return components


class Colouring:
    """A column as colours: `categories` with a colour each and `codes` (-1: missing), or numbers on a scale."""

    def __init__(self, name: str, values: pd.Series) -> None:
        self.name, self.values = name, values
        is_number = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
        self.is_scale = is_number and values.nunique() > MAX_CATEGORIES
        if self.is_scale:
            self.width = 0.9
            return
        if not isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype("category")
        values = values.cat.remove_unused_categories()
        if not values.cat.ordered:
            values = values.cat.reorder_categories(sorted(values.cat.categories, key=split_numbers))
        counts = np.bincount(values.cat.codes[values.cat.codes >= 0], minlength=len(values.cat.categories))
        kept = np.sort(np.argsort(-counts, kind="stable")[: MAX_CATEGORIES - (len(counts) > MAX_CATEGORIES)])
        new_code = np.full(len(counts) + 1, len(kept))  # all categories that are not kept become "others"
        new_code[kept] = np.arange(len(kept))
        new_code[-1] = -1
        self.codes = new_code[values.cat.codes.to_numpy()]
        self.n_categories = len(counts)
        self.categories = [shorten(str(values.cat.categories[code])) for code in kept]
        self.colours = choose_colours(len(kept))
        if len(kept) < len(counts):
            self.categories.append(f"{len(counts) - len(kept):,} others")
            self.colours.append(FAINT)
        n_columns = math.ceil(len(self.categories) / LEGEND_ROWS)
        self.width = n_columns * (0.6 + LETTER * max(map(len, self.categories), default=0)) + 0.2


def split_numbers(name: Any) -> list[Any]:
    """A sorting key that puts "donor 2" before "donor 10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(name))]


def shorten(name: str, length: int = 30) -> str:
    """Shorten a name by its middle, because names often differ at the start or the end."""
    return name if len(name) <= length else f"{name[: length - 9]}…{name[-8:]}"


def choose_colours(n_colours: int) -> list[Any]:
    """Distinct colours: up to eight Okabe and Ito's, then matplotlib's tab20, dark ones first, then tab20b."""
    import matplotlib

    if n_colours <= len(OKABE_ITO):
        return list(OKABE_ITO[:n_colours])
    tab20, tab20b = matplotlib.colormaps["tab20"].colors, matplotlib.colormaps["tab20b"].colors  # type: ignore[attr-defined]
    return [*tab20[::2], *tab20[1::2], *tab20b][:n_colours]


def draw_panel(figure: "Figure", axes: "Axes", places: np.ndarray, panel: Colouring, method: str) -> None:
    """Draw one panel: points, a legend beside them, and names of the axes, which have no scale."""
    from matplotlib.colors import to_rgba
    from matplotlib.patheffects import withStroke

    size = float(np.clip(40_000 / len(places), 2.5, 16))
    points: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.75}
    if panel.is_scale:
        drawn = axes.scatter(places[:, 0], places[:, 1], c=panel.values.to_numpy(dtype=float), cmap="viridis", **points)
        scale = figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0.5, 0.03, 0.5)))
        scale.set_alpha(1)
        scale.outline.set_visible(False)
        scale.ax.tick_params(labelsize=8, length=0, labelcolor=INK)
        axes.set_title(panel.name, loc="left", size=11, color=INK)
    else:
        colours = np.array([to_rgba(colour) for colour in [*panel.colours, MISSING]])
        axes.scatter(places[:, 0], places[:, 1], c=colours[panel.codes], **points)
        axes.set_title(f"{panel.name} ({panel.n_categories:,})", loc="left", size=11, color=INK)
        middles = find_middles(places, panel) if len(panel.categories) > len(OKABE_ITO) else {}
        if 2 * len(middles) < len(panel.categories):  # such as well-mixed batches: a few numbers would confuse
            middles = {}
        add_legend(axes, panel, is_numbered=bool(middles))
        for code, middle in middles.items():
            text = axes.text(middle[0], middle[1], str(code + 1), size=9, weight="bold", color=INK)
            text.set(ha="center", va="center", path_effects=[withStroke(linewidth=2.2, foreground="white")])
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{method} 1", loc="left", size=8, color=FAINT)
    axes.set_ylabel(f"{method} 2", loc="bottom", size=8, color=FAINT)
    for side in axes.spines.values():
        side.set_visible(False)


def add_legend(axes: "Axes", panel: Colouring, is_numbered: bool) -> None:
    """Add a legend to the right of the panel, in as many columns as it needs."""
    from matplotlib.lines import Line2D

    names = [f"{code + 1}  {name}" if is_numbered else name for code, name in enumerate(panel.categories)]
    colours = list(panel.colours)
    if (panel.codes < 0).any():
        names.append("missing")
        colours.append(MISSING)
    dots = [Line2D([], [], marker="o", linestyle="", markersize=6, markeredgewidth=0, color=c) for c in colours]
    axes.legend(
        dots,
        names,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        ncols=math.ceil(len(names) / (LEGEND_ROWS + 1)),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handletextpad=0.3,
        columnspacing=1.0,
        borderaxespad=0.2,
    )


def find_middles(places: np.ndarray, panel: Colouring, n_near: int = 30) -> dict[int, np.ndarray]:
    """The place of each category's middle cell, if most cells around it are of the same category."""
    middles = {}
    for code in np.unique(panel.codes[panel.codes >= 0]):
        own = places[panel.codes == code]
        middle = own[np.abs(own - np.median(own, axis=0)).sum(axis=1).argmin()]
        near = np.argsort(((places - middle) ** 2).sum(axis=1), kind="stable")[: min(n_near, len(own))]
        if (panel.codes[near] == code).mean() > 0.5:
            middles[int(code)] = middle
    return middles


def write_picture(figure: "Figure", out: Path) -> None:
    """Write a figure as a complete PNG or not at all. Raises OutputError."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=160)
    try:
        with making_parents(out):
            write_whole(out, picture.getvalue())
    except OSError as error:
        raise OutputError(f"{out}: the picture can't be written there ({error.strerror}).") from error
