"""A picture of the latent space of some cells that have no coordinates yet, with a panel for each of their columns."""

from pathlib import Path

import numpy as np
import pandas as pd

from atlasvi.engine.plots.colouring import colour_series
from atlasvi.engine.plots.embedding_plot import draw_figure
from atlasvi.engine.plots.picture_file import find_format, write_picture
from atlasvi.engine.plots.style import Style, drawing
from atlasvi.engine.queries.umap_layout import place_cells
from atlasvi.loaders.errors import ColumnError

# Measured on an idle core: the picture of 10,000 cells takes 10 s, 3 s of them for the map, the rest for imports and
# numba's compilation (15 s more at the first use after umap-learn is installed); 20,000 cells take 7 s more for a map
# that looks the same.
MAX_CELLS = 10_000


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
              distinct ones a colour scale). With more than eight categories, labels on the map mark those whose
              cells lie together.
    out_png   .png, .svg or .pdf, replaced if it exists
    With more than `max_cells` cells, a random subset of that size is drawn; the subset and UMAP depend on `seed`.
    UMAP is used if umap-learn is installed, else the first two principal components; the axes name the method.
    Raises MissingDependencyError without matplotlib, ColumnError without columns or for a column of another length,
    QueryError for another ending of the name, OutputError if the file can't be written.
    """
    style = Style()
    find_format(out_png)
    with drawing(style):
        if not columns:
            raise ColumnError("picture: there is no column to colour the cells by: name at least one.")
        for name, values in columns.items():
            if len(values) != len(latent):
                raise ColumnError(f"picture: column {name!r} has {len(values):,} values for {len(latent):,} cells.")
        shown = np.random.default_rng(seed).permutation(len(latent))[:max_cells]
        method, places = place_cells(np.asarray(latent)[shown], seed)
        panels = [(None, colour_series(name, values.iloc[shown])) for name, values in columns.items()]
        cells = f"{len(latent):,} cells" + (f", {len(shown):,} drawn" if len(shown) < len(latent) else "")
        made = f"{cells}; {method} of {latent.shape[1]} latent dimensions"
        figure = draw_figure(places.astype(np.float32), panels, style, title, made, method)
        write_picture(figure, out_png, style)
    return method
