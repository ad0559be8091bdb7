"""Differential abundance: the log-density of each cell's latent under the cells of each sample."""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.covariates import find_categories, to_category
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.cell_choice import sample_cells
from atlasvi.engine.queries.latents import log_density, read_latents, represent_cells
from atlasvi.engine.queries.question_cells import BATCH_SIZE, QueryError, QuestionCells, need_at_least, take_chosen
from atlasvi.engine.queries.shared_draws import Report
from atlasvi.loaders.cells.coded_columns import SLICE_CELLS, CodedColumn, code_column, count_codes, recode
from atlasvi.loaders.errors import AtlasviWarning

COMPONENTS = 2**20  # cells of all samples together, unless more are asked for: 168 MB of 20 latents
PAIRS = 2**36  # of a cell and a cell of a sample, unless more are asked for: 2.4 hours on two busy cores


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
    """Log-density of cells under the aggregated posterior of each sample: `slice_abundance` as one table.

    num_cells_posterior  largest number of cells of a sample to use, chosen at random; None: all of them, however many
    Returns float32 [cells, samples], in nats.
    """
    need_at_least(1, num_cells_posterior=num_cells_posterior)
    samples, slices = slice_abundance(
        model, cells, queried, generator, sample_key, indices, num_cells_posterior or cells.n_cells, dof, batch_size
    )
    parts = list(slices)
    values = np.concatenate([np.empty((0, len(samples)), np.float32), *(part for _, part in parts)])
    return pd.DataFrame(values, index=queried.read_names(indices), columns=samples)


def slice_abundance(
    model: VAE,
    cells: QuestionCells,
    queried: QuestionCells,
    generator: Generator,
    sample_key: str,
    chosen: np.ndarray | None = None,
    max_cells: int | None = None,
    dof: float | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Report = lambda stage, done, total: None,
    check_size: Callable[[int], None] = lambda n_values: None,
) -> tuple[pd.Index, Iterator[tuple[pd.Index, np.ndarray]]]:
    """The samples, and slices of (names, log-densities float32 [cells, samples] in nats) of the chosen cells.

    cells       all cells: those of a sample make its aggregated posterior
    queried     the data of the cells whose densities are computed; its samples are the columns of the answer
    sample_key  obs column of the samples; cells where it is missing belong to no sample
    chosen      ascending int64 indices of the cells of `queried`; None: all of them
    max_cells   largest number of cells of a sample to use, chosen at random. None: all, unless that would be more than
                `COMPONENTS` cells of all samples, or more than `PAIRS` comparisons; then as many as these allow, and a
                warning says how many
    dof         see `mix_posteriors`
    check_size  called with the number of values that all samples take, before these are read; may raise an error
    Each density compares a cell with every cell of a sample: time grows with the product of both numbers. Memory is
    that of the latents of the samples' cells.
    Raises ColumnError if the column does not exist, QueryError if there are no samples, or if one has no cells among
    `cells`.
    """
    need_at_least(1, max_cells=max_cells)
    samples, codes = _find_samples(cells, queried, sample_key)
    sizes = count_codes(codes, len(samples))
    if not sizes.all():
        missing = to_category(samples[int(np.argmin(sizes))])
        raise QueryError(f"{cells.path}: no cell has {sample_key} = {missing!r}, so that sample has no density.")
    if max_cells is None:
        n_queried = queried.n_cells if chosen is None else len(chosen)
        max_cells = limit_members(sizes, min(COMPONENTS, PAIRS // max(n_queried, 1)))
        if max_cells < sizes.max():
            warnings.warn(
                f"{cells.path}: densities are from at most {max_cells:,} cells of each sample, chosen at random: "
                "for more, choose fewer cells to compute densities for, or set the number (--max-cells, max_cells).",
                AtlasviWarning,
                stacklevel=2,
            )
    check_size(int(np.minimum(sizes, max_cells).sum()) * 2 * model.n_latent)
    by_sample = np.split(np.argsort(codes, kind="stable")[len(codes) - sizes.sum() :], np.cumsum(sizes)[:-1])
    members = [sample_cells(each, max_cells, generator) for each in by_sample]
    latents = [torch.from_numpy(part) for part in read_latents(model, cells, np.concatenate(members), batch_size)]
    edges = np.cumsum([0, *map(len, members)])
    return samples, _slice_densities(model, queried, generator, chosen, latents, edges, dof, batch_size, progress)


def limit_members(sizes: np.ndarray, n: int) -> int:
    """The largest number of cells of a sample with which all samples have at most n cells together; at least 1.

    sizes  int [samples]: how many cells each has
    """
    low, high = 1, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() <= n:
            low = middle
        else:
            high = middle - 1
    return low


@torch.inference_mode()
def _slice_densities(
    model: VAE,
    queried: QuestionCells,
    generator: Generator,
    chosen: np.ndarray | None,
    latents: list[Tensor],
    edges: np.ndarray,
    dof: float | None,
    batch_size: int,
    progress: Report,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    where, n_samples, done = generator.device, len(edges) - 1, 0
    total = queried.n_cells if chosen is None else len(chosen)
    for start in range(0, total, SLICE_CELLS):
        rows = take_chosen(chosen, start, min(start + SLICE_CELLS, total))
        z = torch.from_numpy(represent_cells(model, queried, generator, rows, batch_size=batch_size))
        for at in range(0, len(z), batch_size):
            here = z[at : at + batch_size].to(where)
            found = np.empty((len(here), n_samples), np.float32)
            for k in range(n_samples):
                qzm, qzv = (part[edges[k] : edges[k + 1]].to(where) for part in latents)
                found[:, k] = log_density(here, qzm, qzv, dof).cpu()
                progress("computing densities", done, total)
            done += len(here)
            progress("computing densities", done, total)
            yield queried.read_names(rows[at : at + batch_size]), found


def _find_samples(cells: QuestionCells, queried: QuestionCells, key: str) -> tuple[pd.Index, np.ndarray]:
    """The samples, in their order in the queried data, and int [cells]: the sample of each cell, or -1."""
    column = code_column(queried, key)
    first = np.full(len(column.categories), -1)
    for start in range(0, len(column.codes), SLICE_CELLS):
        values, places = np.unique(column.codes[start : start + SLICE_CELLS], return_index=True)
        fresh = [(value, start + place) for value, place in zip(values, places) if value >= 0 and first[value] < 0]
        for value, place in fresh:
            first[value] = place
    order = np.array([value for value in np.argsort(first) if first[value] >= 0], np.int64)
    if not len(order):
        raise QueryError(f"{queried.path}: obs column {key!r} is missing in every cell: there are no samples.")
    samples = column.categories[order]
    there: CodedColumn = column if queried is cells else code_column(cells, key)
    known = find_categories(
        [to_category(value) for value in samples], [to_category(value) for value in there.categories]
    )
    table = np.array([*(-1 if place is None else place for place in known), -1])
    return samples, recode(there.codes, table, np.min_scalar_type(-len(samples)))  # narrow codes are sorted fast
