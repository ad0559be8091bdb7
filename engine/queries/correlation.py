"""Correlations between genes, in counts drawn from the posterior without the noise of counting."""

import warnings
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.likelihoods import draw_gamma
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.cross_products import CrossProducts
from atlasvi.engine.queries.expression import Batches, decode_cells, read_library_size
from atlasvi.engine.queries.question_cells import BATCH_SIZE, Posterior, QueryError, QuestionCells, need_at_least
from atlasvi.loaders.errors import AtlasviWarning


def correlate_genes(
    model: VAE,
    cells: QuestionCells,
    generator: Generator,
    *,
    indices: np.ndarray,
    columns: np.ndarray | slice = slice(None),
    n_samples: int = 10,
    rna_size_factor: float = 1000,
    transform_batch: Batches = (None,),
    correlation_type: Literal["spearman", "pearson"] = "spearman",
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Correlations float64 [genes, genes], averaged over the batches that cells are decoded as.

    columns          indices of the genes; a gene that is there twice has the same draws in both places
    rna_size_factor  library size at which rates are drawn, from a gamma distribution of inverse dispersion theta
    All draws are in memory, float32 [samples * cells, genes]: use it with a sample of the cells.
    Genes that do not vary have no correlations: NaN, with a warning.
    Raises QueryError for an unknown correlation_type, a likelihood without dispersion (Poisson), an invalid
    rna_size_factor, or fewer than two draws.
    """
    if correlation_type not in ("spearman", "pearson"):
        raise QueryError(f"correlation_type {correlation_type!r}: use 'spearman' or 'pearson'.")
    if not len(indices):
        raise QueryError(f"{cells.path}: no cell was chosen.")
    need_at_least(1, n_samples=n_samples)
    if len(indices) * n_samples < 2:
        raise QueryError(f"{cells.path}: one draw of one cell has no correlations: choose more cells, or more draws.")
    size = read_library_size(rna_size_factor)
    places: np.ndarray | None = None
    if not isinstance(columns, slice) and len(unique := np.unique(columns)) < len(columns):
        columns, places = unique, np.searchsorted(unique, columns)
    if not model.settings.likelihood.has_dispersion:
        name = model.settings.gene_likelihood
        raise QueryError(f"The likelihood {name!r} has no dispersion, which correlations need.")

    def decode(posterior: Posterior, z: Tensor, library: Tensor, batch: int | None) -> Tensor:
        expression = model.decode(z, posterior.codes, library, transform_batch=batch)
        assert expression.theta is not None
        rate = size * expression.proportions
        theta = expression.theta.expand_as(rate)[..., columns].contiguous()
        rate = rate[..., columns]
        return draw_gamma(theta, theta / rate, generator)

    matrices = []
    for batch in transform_batch:
        draws = decode_cells(
            model,
            cells,
            generator,
            decode,
            indices=indices,
            transform_batch=(batch,),
            n_samples=n_samples,
            batch_size=batch_size,
        )
        draws = draws.reshape(-1, draws.shape[-1])
        if correlation_type == "spearman":
            _rank(draws)
        matrices.append(_correlate(draws))
    found = np.mean(matrices, axis=0)
    if places is not None:
        found = found[np.ix_(places, places)]
    if n_constant := int(np.isnan(np.diagonal(found)).sum()):
        warnings.warn(
            f"{cells.path}: {n_constant:,} of {len(found):,} genes have the same value in all draws, so they have no "
            "correlations (NaN): choose more cells, or more draws.",
            AtlasviWarning,
            stacklevel=3,
        )
    return found


def _rank(draws: np.ndarray) -> None:
    """Replace the values of each gene by their ranks; equal values get their mean rank."""
    from scipy.stats import rankdata

    for gene in range(draws.shape[1]):
        draws[:, gene] = rankdata(draws[:, gene])


def _correlate(draws: np.ndarray, size: int = 2**13) -> np.ndarray:
    """Pearson's correlation of columns, with float64 sums over slices of rows."""
    products = CrossProducts(slice(None), draws.mean(0, dtype=np.float64))
    for at in range(0, len(draws), size):
        products.add(torch.from_numpy(draws[at : at + size]))
    return products.correlate()
