"""Latents and expression from a minified store, decoded by the model inside it, slice by slice."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.queries.expression import slice_expression
from atlasvi.engine.queries.latents import slice_latents
from atlasvi.engine.queries.question_cells import MinifiedCells


def read_latent(
    store: KeptPosterior, cells: np.ndarray | None = None
) -> Iterator[tuple[pd.Index, np.ndarray, np.ndarray]]:
    """Slices of (cell names, qzm, qzv) of the chosen cells, in the order of the store.

    cells  ascending int64 indices; None: all
    """
    return slice_latents(None, MinifiedCells(store), cells)


def read_expression(
    store: KeptPosterior,
    genes: Sequence[str] | None = None,
    cells: np.ndarray | None = None,
    library_size: float | str = 1.0,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """Slices of (cell names, decoded expression float32 [cells, genes]) at the posterior mean of each cell.

    genes         names; None: all of the model
    cells         ascending int64 indices; None: all
    library_size  1 gives proportions (the sum over all genes is 1), another number that many counts per cell,
                  'observed' expected counts at the cell's own library size (or size factor, if the model has one)
    Raises GeneError for an unknown gene, QueryError for an invalid library size.
    """
    return slice_expression(store.run, MinifiedCells(store), cells, genes=genes, library_size=library_size)
