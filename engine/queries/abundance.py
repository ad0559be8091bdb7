"""Differential abundance: the log-density of each cell's latent under the cells of each sample."""

import numpy as np
import pandas as pd
import torch
from torch import Generator

from atlasvi.engine.model.covariates import to_category
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.cell_choice import sample_cells
from atlasvi.engine.queries.latents import log_density, read_latents, represent_cells
from atlasvi.engine.queries.question_cells import BATCH_SIZE, QueryError, QuestionCells, need_at_least


def differential_abundance(
    model: VAE,
    cells: QuestionCells,
    queried: QuestionCells,
    generator: Generator,
    sample_key: str,
    *,
    indices: np.ndarray | None = None,
    num_cells_posterior: int | None = None,
    dof: float | None = None,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """Log-density of cells under the aggregated posterior of each sample.

    cells        all cells: those of a sample make its aggregated posterior
    sample_key   obs column of the samples; cells where it is missing belong to no sample
    queried      the data of the cells whose densities are computed; its samples are the columns of the answer
    indices      int64 indices of these cells; None: all of them
    num_cells_posterior  largest number of cells of a sample to use, chosen at random
    dof          see `mix_posteriors`
    Returns float32 [cells, samples], in nats. Raises ColumnError if the column does not exist, QueryError if there are
    no samples, or if one has no cells among `cells`.
    """
    need_at_least(1, num_cells_posterior=num_cells_posterior)
    rows = np.arange(queried.n_cells) if indices is None else indices
    z = torch.from_numpy(represent_cells(model, queried, generator, rows, batch_size=batch_size))
    column, samples = cells.read_column(sample_key), queried.read_column(sample_key).dropna().unique()
    if not len(samples):
        raise QueryError(f"{queried.path}: obs column {sample_key!r} is missing in every cell: there are no samples.")
    where = generator.device
    found = np.empty((len(rows), len(samples)), np.float32)
    for k, sample in enumerate(samples):
        members = np.flatnonzero((column == sample).fillna(False).to_numpy(bool))
        if not len(members):
            raise QueryError(
                f"{cells.path}: no cell has {sample_key} = {to_category(sample)!r}, so that sample has no density."
            )
        if num_cells_posterior is not None:
            members = sample_cells(members, num_cells_posterior, generator)
        qzm, qzv = (torch.from_numpy(part).to(where) for part in read_latents(model, cells, members, batch_size))
        for at in range(0, len(z), batch_size):
            found[at : at + batch_size, k] = log_density(z[at : at + batch_size].to(where), qzm, qzv, dof).cpu()
    return pd.DataFrame(found, index=queried.read_names(indices), columns=samples)
