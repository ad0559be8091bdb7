"""Highly variable genes, seurat_v3 flavour, in two streaming passes over the counts.

In each batch, a loess curve of log10 variance over log10 mean gives the expected variance for a gene's mean; counts are
standardised by it and clipped at sqrt(cells), and genes ranked by the variance of the result. Genes are chosen by their
median rank over the batches in which they are among the best (Stuart et al. 2019, Cell 177:1888; ties by the number of
such batches). Sums are taken in scanpy's order of operations, so that ranks and ties agree with
`scanpy.pp.highly_variable_genes(flavor="seurat_v3", batch_key=...)` to the last bit.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.errors import CountsError, GeneError, MissingDependencyError

Blocks = Callable[[], Iterable[tuple[sp.csr_matrix, np.ndarray]]]

# scanpy has only the first span, and fails where few cells have few distinct means (seen below a hundred cells).
SPANS = (0.3, 0.5, 0.75, 1.0)


def find_variable_genes(
    blocks: Blocks, n_genes: int, n_batches: int, n_top: int, spans: Sequence[float] = SPANS
) -> pd.DataFrame:
    """Choose `n_top` highly variable genes; returns a table with one row for each gene, with scanpy's column names.

    blocks     called twice; yields the same (counts CSR [cells, n_genes], batch codes int [cells] in 0..n_batches - 1)
    spans      proportions of the genes in loess's local fits; if one fails in a batch (where scanpy raises an error),
               the next is tried; a batch for which none works (with one cell, say) is left out of the ranking
    Columns: highly_variable bool, highly_variable_rank float (median rank, NaN: never among the best),
    highly_variable_nbatches int, means, variances, variances_norm float64 (the last a mean over batches).
    `attrs["spans"]` of the table holds the span used for each batch code.
    Memory: about six float64 arrays [n_batches, n_genes], and one block.

    Raises GeneError if `n_top` is not in 1..n_genes, CountsError if no batch could be fitted, MissingDependencyError.
    """
    if not 1 <= n_top <= n_genes:
        raise GeneError(f"{n_top:,} highly variable genes were requested of {n_genes:,}: ask for 1 to {n_genes:,}.")
    n_cells, totals, squares = sum_counts(blocks, n_genes, n_batches)
    mean, variance = find_moments(n_cells, totals, squares)
    overall = find_moments(n_cells.sum(keepdims=True), totals.sum(axis=0)[None], squares.sum(axis=0)[None])

    spans_used: dict[int, float] = {}
    deviation = np.ones_like(mean)
    for batch in range(n_batches):
        fitted = fit_deviation(mean[batch], variance[batch], spans)
        if fitted is not None:
            spans_used[batch], deviation[batch] = fitted
    if not spans_used:
        raise CountsError(
            f"highly variable genes can't be chosen: in no batch ({np.count_nonzero(n_cells):,}, the largest of "
            f"{n_cells.max(initial=0):,} cells) can a variance be fitted to the means; choose another batch key, or "
            "keep all genes."
        )
    clip = np.multiply(deviation, np.sqrt(n_cells)[:, None], out=variance)
    clip += mean
    _, totals, squares = sum_counts(blocks, n_genes, n_batches, clip, out=(totals, squares))

    normalised = clip[: len(spans_used)]
    for vote, batch in enumerate(spans_used):
        n = n_cells[batch]
        normalised[vote] = (1 / ((n - 1) * np.square(deviation[batch]))) * (
            (n * np.square(mean[batch])) + squares[batch] - 2 * totals[batch] * mean[batch]
        )
    table = rank_genes(normalised, n_top)
    table["means"], table["variances"] = overall[0][0], overall[1][0]
    table.attrs["spans"] = spans_used
    return table


def sum_counts(
    blocks: Blocks,
    n_genes: int,
    n_batches: int,
    clip: np.ndarray | None = None,
    out: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum counts and their squares by batch and gene in one pass: (cells int64 [batches], totals, squares).

    clip     float64 [batches, genes]: larger counts are replaced by this
    out      arrays for totals and squares, float64 [batches, genes]; without `clip` they are exact up to 2**53
    """
    n_cells = np.zeros(n_batches, dtype=np.int64)
    totals, squares = (np.empty((n_batches, n_genes)), np.empty((n_batches, n_genes))) if out is None else out
    totals.fill(0)
    squares.fill(0)
    for counts, codes in blocks():
        n_cells += np.bincount(codes, minlength=n_batches)
        at = np.repeat(codes.astype(np.int64) * n_genes, np.diff(counts.indptr))
        at += counts.indices
        values = counts.data.astype(np.float64)
        if clip is not None:
            np.minimum(values, clip.ravel()[at], out=values)
        # One entry after the other, as scanpy adds them; bincount would visit all batches for every block.
        np.add.at(totals.reshape(-1), at, values)
        np.add.at(squares.reshape(-1), at, values * values)
    return n_cells, totals, squares


def find_moments(n_cells: np.ndarray, totals: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (divided by n - 1) of each gene; n_cells [batches], else [batches, genes]; zeros without cells.

    The difference of two close numbers is exact enough: sums of whole numbers have no error, so a constant gene has
    variance zero, and the others are right to about 1e-16 of the squared mean.
    """
    n = np.maximum(n_cells, 1)[:, None]
    mean = totals / n
    variance = squares / n - mean**2
    variance *= n / np.maximum(n - 1, 1)
    return mean, variance


def fit_deviation(mean: np.ndarray, variance: np.ndarray, spans: Sequence[float]) -> tuple[float, np.ndarray] | None:
    """Fit log10 variance over log10 mean of one batch; returns (span used, expected standard deviation of each gene).

    mean, variance  float64 [genes]; genes without variance are left out and get 1. None if no span fits.
    """
    try:
        from skmisc.loess import loess
    except ImportError as error:
        raise MissingDependencyError(
            "choosing highly variable genes needs scikit-misc: pip install 'atlasvi[genes]'."
        ) from error
    varies = variance > 0
    x, y = np.log10(mean[varies]), np.log10(variance[varies])
    estimate = np.zeros(len(mean))
    for span in spans:
        if span * len(x) < 2:  # with less than 1, loess crashes (segmentation fault, scikit-misc 0.5.3)
            continue
        try:
            model = loess(x, y, span=span, degree=2)
            model.fit()
        except ValueError:  # its message ("Chernobyl! trL>n") helps nobody
            continue
        estimate[varies] = model.outputs.fitted_values
        if np.isfinite(estimate).all():
            return span, np.sqrt(10**estimate)
    return None


def rank_genes(normalised: np.ndarray, n_top: int) -> pd.DataFrame:
    """Choose the `n_top` genes from normalised variances, float64 [batches, genes]. Ties are sorted as in scanpy."""
    ranks = np.empty(normalised.shape, dtype=np.float32)
    for batch, row in enumerate(normalised):
        ranks[batch] = np.argsort(np.argsort(-row))
    among_best = ranks < n_top
    ranks[~among_best] = np.nan
    table = pd.DataFrame(
        {
            "highly_variable": False,
            "highly_variable_rank": np.ma.median(np.ma.masked_invalid(ranks), axis=0).filled(np.nan),
            "highly_variable_nbatches": among_best.sum(axis=0),
            "means": np.nan,
            "variances": np.nan,
            "variances_norm": np.mean(normalised, axis=0),
        }
    )
    order = ["highly_variable_rank", "highly_variable_nbatches"]
    best = table[order].sort_values(order, ascending=[True, False], na_position="last").index[:n_top]
    table.loc[best, "highly_variable"] = True
    return table
