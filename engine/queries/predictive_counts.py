"""Counts drawn from the posterior predictive distribution, which includes the noise of counting; sparse throughout.

The draw of a cell depends on the seed, the cell's index in its data and the number of the draw alone: the latent, a
latent library and the counts are functions of these (kernels/counter_random.py), whatever the minibatches and ranks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Generator

from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.cell_choice import in_order
from atlasvi.engine.queries.expression import Batches
from atlasvi.engine.queries.model_names import find_batches, find_genes
from atlasvi.engine.queries.question_cells import (
    BATCH_SIZE,
    Posterior,
    QueryError,
    QuestionCells,
    name_cells,
    take_chosen,
)
from atlasvi.kernels import InvalidParametersError


def take_seed(generator: Generator) -> int:
    """A seed for the draws of one answer, from a generator, which gives another one the next time."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


@torch.inference_mode()
def draw_batches(
    model: VAE,
    cells: QuestionCells,
    seed: int,
    chosen: np.ndarray | None = None,
    *,
    n_draws: int = 1,
    transform_batch: Batches = (None,),
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[Posterior, list[sparse.csr_matrix]]]:
    """For each minibatch of the chosen cells its posterior, and its counts in each draw: float32 CSR [cells, genes].

    chosen           ascending int64 indices of the cells; None: all
    transform_batch  codes of batches to decode as, over whose counts the result is averaged; None: each cell's own
    Raises QueryError where the model gives a cell no distribution of counts, or minified data lacks a library size.
    """
    at = 0
    for posterior in cells.read_posteriors(model, chosen, batch_size):
        posterior.check_library(model)
        numbers = take_chosen(chosen, at, at + len(posterior))
        at += len(posterior)
        try:
            yield (
                posterior,
                [
                    _average(
                        draw_minibatch(model, posterior, numbers, seed, draw * len(transform_batch) + k, batch)
                        for k, batch in enumerate(transform_batch)
                    )
                    for draw in range(n_draws)
                ],
            )
        except InvalidParametersError as error:
            name = cells.read_names(numbers[[error.cell]])[0]
            raise QueryError(
                f"{cells.path}: no counts can be drawn for cell {str(name)!r}: the model gives it a mean, a dispersion "
                "or a dropout that is NaN or infinite, or its library size is negative. Check the cell's counts and "
                "covariates, and whether training diverged."
            ) from None


def draw_minibatch(
    model: VAE, posterior: Posterior, numbers: np.ndarray, seed: int, draw: int, batch: int | None = None
) -> sparse.csr_matrix:
    """One draw of the counts of a minibatch, float32 CSR [cells, genes].

    numbers  int64 [cells], the index of each cell in its data, which chooses its random numbers
    batch    decode all cells as of this batch; None: each as of its own
    """
    indices = torch.from_numpy(numbers).to(posterior.library.device)
    z, library = posterior.draw_numbered(model, seed, indices, draw)
    drawn = model.sample_counts(z, posterior.codes, library, seed, indices, draw, transform_batch=batch)
    values = drawn.counts.cpu().numpy().astype(np.float32), drawn.indices.cpu().numpy(), drawn.indptr.cpu().numpy()
    return sparse.csr_matrix(values, (len(posterior), model.settings.n_genes))


def _average(draws: Iterator[sparse.csr_matrix]) -> sparse.csr_matrix:
    parts = list(draws)
    return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) / len(parts)


def predictive_counts(
    model: VAE,
    cells: QuestionCells,
    seed: int,
    *,
    indices: np.ndarray,
    columns: np.ndarray | slice = slice(None),
    n_draws: int = 1,
    transform_batch: Batches = (None,),
    batch_size: int = BATCH_SIZE,
) -> sparse.csr_matrix:
    """Counts of the cells with these indices, in any order: float32 CSR [cells, genes x draws].

    The draws of a gene are adjacent columns. columns: indices of the genes
    """
    wanted, places = in_order(indices, cells.n_cells)
    options: dict[str, Any] = {"n_draws": n_draws, "transform_batch": transform_batch, "batch_size": batch_size}
    parts = []
    for _, draws in draw_batches(model, cells, seed, wanted, **options):
        chosen = [draw[:, columns].tocoo() for draw in draws]
        rows = np.concatenate([draw.row for draw in chosen])
        places_of_draws = np.concatenate([draw.col.astype(np.int64) * n_draws + k for k, draw in enumerate(chosen)])
        shape = chosen[0].shape[0], chosen[0].shape[1] * n_draws
        counts = np.concatenate([draw.data for draw in chosen])
        parts.append(sparse.csr_matrix((counts, (rows, places_of_draws)), shape))
    n_genes = sparse.csr_matrix((1, model.settings.n_genes))[:, columns].shape[1]
    if not parts:
        return sparse.csr_matrix((0, n_genes * n_draws), dtype=np.float32)
    whole = sparse.vstack(parts, format="csr")
    return whole if places is None else whole[places]


def slice_counts(
    run: TrainedRun,
    cells: QuestionCells,
    chosen: np.ndarray | None,
    seed: int,
    *,
    genes: Sequence[str] | None = None,
    transform_batch: Any = None,
    n_samples: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """(names, counts float32 [cells, genes]) drawn from the posterior predictive of the chosen cells, by minibatch.

    n_samples  draws per cell. If there are several, each cell has that many rows, numbered in the first column.
    The other arguments are as for `slice_expression`.
    """
    columns = find_genes(run, genes, cells.path)
    options: dict[str, Any] = {"n_draws": n_samples, "transform_batch": find_batches(run, transform_batch)}
    size = max(batch_size // n_samples, 1)
    minibatches = draw_batches(run.model, cells, seed, chosen, batch_size=size, **options)
    parts = (np.stack([draw[:, columns].toarray() for draw in draws], axis=1) for _, draws in minibatches)
    for names, draws in name_cells(cells, chosen, parts):
        if n_samples == 1:
            yield names, draws[:, 0]
            continue
        which = np.tile(np.arange(n_samples, dtype=np.float32), len(names))[:, None]
        yield names.repeat(n_samples), np.concatenate([which, draws.reshape(len(which), -1)], axis=1)
