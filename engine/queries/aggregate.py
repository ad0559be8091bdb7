"""Mean decoded expression of groups of cells: pseudobulk, and what a dot plot shows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from atlasvi.engine.queries.expression import Decode, decode_expression, read_library_size
from atlasvi.engine.queries.labels import sample_members
from atlasvi.engine.queries.model_names import find_batches, find_genes
from atlasvi.engine.queries.opened_question import Asked, OpenedQuestion, ask
from atlasvi.engine.queries.question_cells import BATCH_SIZE, Posterior, QueryError, need_at_least
from atlasvi.engine.queries.shared_draws import Report
from atlasvi.loaders.cells.coded_columns import SLICE_CELLS, code_column, count_codes

MOST_COMBINATIONS = 2**62  # of values of the columns of groups: they are numbered in int64
LibrarySize = float | Literal["observed", "latent"]


@dataclass
class Aggregate:
    """Statistics of the decoded expression of groups of cells; arrays are float64 [groups, genes].

    groups          one row a group: its values of the obs columns, `n_cells`, and `n_sampled`, the cells decoded
    genes           names of the genes
    mean            mean over the cells decoded
    standard_error  of that mean as an estimate of the mean of all cells of the group; None if all cells were decoded
    fraction        mean probability of a count above 0; None if it was not asked for
    """

    groups: pd.DataFrame
    genes: list[str]
    mean: np.ndarray
    standard_error: np.ndarray | None = None
    fraction: np.ndarray | None = None

    def to_table(self) -> pd.DataFrame:
        """One row a group with a column for each gene; or, if there are more statistics than the mean, one row for each
        group and gene, with the columns `gene`, `mean`, `standard_error` and `fraction`.
        """
        if self.standard_error is None and self.fraction is None:
            means = pd.DataFrame(self.mean, index=self.groups.index, columns=self.genes)
            return pd.concat([self.groups.drop(columns="n_sampled"), means], axis=1)
        long = self.groups.loc[self.groups.index.repeat(len(self.genes))].reset_index(drop=True)
        long["gene"] = np.tile(np.array(self.genes, object), len(self.groups))
        for name in ("mean", "standard_error", "fraction"):
            if (values := getattr(self, name)) is not None:
                long[name] = values.ravel()
        return long


@torch.inference_mode()
def aggregate(
    asked: Asked,
    by: Sequence[str] | str,
    *,
    genes: Sequence[str] | None = None,
    chosen: np.ndarray | None = None,
    library_size: float | str = 1.0,
    transform_batch: Any = None,
    fraction_at: float | str | None = None,
    max_cells: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Report = lambda stage, done, total: None,
    check_size: Callable[[int], None] = lambda n_values: None,
) -> Aggregate:
    """Mean decoded expression of each group of cells, at the posterior mean of z of each cell.

    asked            a question that was opened, a minified store, or its path
    by               obs columns: a group is a combination of their values that occurs; cells without one are left out
    genes            names; None: all of the model
    chosen           ascending int64 indices of the cells to use; None: all
    library_size, transform_batch  as for `slice_expression`; by default the mean proportion of each gene
    fraction_at      a library size: also the mean probability, under the likelihood, that a cell of that size has a
                     count above 0: what the fraction of expressing cells in a dot plot estimates. None: not computed
    max_cells        decode at most so many cells of each group, chosen at random without replacement, and give the
                     standard error of each mean; None: all cells
    check_size       called with the number of values of the result, before they are computed; may raise an error
    Memory is that of the result, of one number for each cell, and of a minibatch.
    Raises ColumnError for an unknown column, GeneError for an unknown gene, QueryError if no cell is in a group, for an
    unknown batch, an invalid library size, or a fraction of a model whose values are not counts (`normal`).
    """
    opened = ask(asked)
    need_at_least(1, max_cells=max_cells)
    columns = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    if not columns:
        raise QueryError("No groups: name one or more obs columns.")
    groups, codes = _code_groups(opened, columns, chosen)
    cells = _choose_members(opened, codes, groups["n_cells"].to_numpy(), max_cells, seed)
    here = codes if cells is None else codes[cells]
    size, model = read_library_size(library_size), opened.run.model
    places = find_genes(opened.run, genes, opened.cells.path)
    batches = find_batches(opened.run, transform_batch)
    measures: list[Decode] = [decode_expression(model, places, size)]
    if fraction_at is not None:
        measures.append(_decode_detection(opened, places, read_library_size(fraction_at)))
    names = list(genes) if genes is not None else list(opened.run.genes)
    check_size(len(groups) * len(names))
    # sums of the values, of their squares if cells are sampled, and of the probabilities of a count
    sums = np.zeros((len(measures) + (max_cells is not None), len(groups), len(names)))
    at, n_cells = 0, len(here)
    for posterior in opened.cells.read_posteriors(model, cells, batch_size):
        z, library = posterior.mean(model)
        part = here[at : at + len(posterior)]
        values = [
            torch.stack([decode(posterior, z, library, batch) for batch in batches]).mean(0)
            if len(batches) > 1
            else decode(posterior, z, library, batches[0])
            for decode in measures
        ]
        if max_cells is not None:
            values.append(values[0].double().square())
        present, members = np.unique(part, return_inverse=True)
        into = torch.from_numpy(members).to(z.device)
        for total, each in zip(sums, values):
            added = torch.zeros(len(present), each.shape[1], dtype=each.dtype, device=each.device)
            total[present] += added.index_add_(0, into, each).double().cpu().numpy()
        at += len(posterior)
        progress("decoding", at, n_cells)
    groups["n_sampled"] = n_sampled = count_codes(here.astype(np.int64), len(groups))
    means = sums / n_sampled[:, None]
    return Aggregate(
        groups,
        names,
        means[0],
        None if max_cells is None else _standard_error(means[0], means[-1], groups["n_cells"].to_numpy(), n_sampled),
        None if fraction_at is None else means[1],
    )


def _code_groups(
    opened: OpenedQuestion, columns: Sequence[str], chosen: np.ndarray | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """The groups with their numbers of cells, in the order of the columns' categories; and int [cells]: the group of
    each cell, or the number of groups for a cell that is in none.
    """
    coded = [code_column(opened.cells, name) for name in columns]
    sizes = [len(column.categories) for column in coded]
    n_cells, none = opened.cells.n_cells, math.prod(sizes)
    if none > MOST_COMBINATIONS:
        raise QueryError(
            f"{opened.cells.path}: {' and '.join(columns)} have {none:.3g} combinations of values: use fewer columns, "
            "or columns with fewer values."
        )
    inside = np.zeros(n_cells, bool) if chosen is not None else None
    if inside is not None:
        inside[chosen] = True

    def read(at: int) -> np.ndarray:
        """The combinations of codes of a slice of cells as numbers."""
        parts = [column.codes[at : at + SLICE_CELLS].astype(np.int64) for column in coded]
        found = np.ravel_multi_index([part.clip(0) for part in parts], sizes) if min(sizes) else np.zeros_like(parts[0])
        left_out = np.any([part < 0 for part in parts], axis=0)
        if inside is not None:
            left_out |= ~inside[at : at + SLICE_CELLS]
        return np.where(left_out, none, found)

    starts = range(0, n_cells, SLICE_CELLS)
    there = np.unique(np.concatenate([np.unique(read(at)) for at in starts])) if n_cells else np.empty(0, np.int64)
    there = there[there != none]
    if not len(there):
        raise QueryError(f"{opened.cells.path}: no cell was chosen that has a value of {' and '.join(columns)}.")
    codes = np.empty(n_cells, np.min_scalar_type(len(there)))
    for at in starts:
        here = read(at)
        codes[at : at + len(here)] = np.where(here == none, len(there), np.searchsorted(there, here))
    values = np.unravel_index(there, sizes)
    groups = pd.DataFrame({name: column.categories[part] for name, column, part in zip(columns, coded, values)})
    groups.index = pd.Index([" | ".join(map(str, row)) for row in groups.itertuples(index=False)], name="group")
    groups["n_cells"] = count_codes(codes.astype(np.int64, copy=False), len(there) + 1)[:-1]
    return groups, codes


def _choose_members(
    opened: OpenedQuestion, codes: np.ndarray, sizes: np.ndarray, max_cells: int | None, seed: int
) -> np.ndarray | None:
    """Ascending int64: the cells to decode; None: all cells of the data."""
    if max_cells is not None:
        return sample_members(codes, sizes, max_cells, opened.make_generator(seed))
    return None if sizes.sum() == len(codes) else np.flatnonzero(codes < len(sizes))


def _decode_detection(opened: OpenedQuestion, places: Any, library_size: LibrarySize) -> Decode:
    """The probability of a count above 0 of each cell and gene, at a library size."""
    model = opened.run.model
    likelihood = model.settings.likelihood
    if likelihood.takes_fractions:
        raise QueryError(
            f"The likelihood {model.settings.gene_likelihood!r} is of values that are not counts, so there is no "
            "probability of a count above 0."
        )
    decode_mean = decode_expression(model, places, library_size)

    def decode(posterior: Posterior, z: Tensor, library: Tensor, batch: int | None) -> Tensor:
        found = model.decode(z, posterior.codes, library, transform_batch=batch)
        chosen = found._replace(
            proportions=found.proportions[..., places],
            mean=decode_mean(posterior, z, library, batch),
            theta=None if found.theta is None else found.theta[..., places],
            dropout=None if found.dropout is None else found.dropout[..., places],
        )
        return -torch.expm1(likelihood.log_prob(torch.zeros_like(chosen.mean), chosen))

    return decode


def _standard_error(mean: np.ndarray, squares: np.ndarray, n_cells: np.ndarray, n_sampled: np.ndarray) -> np.ndarray:
    """Standard error of the means of samples without replacement: 0 for the whole group, nan for one cell of more."""
    n, whole = n_sampled[:, None], (n_cells == n_sampled)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (squares - mean**2).clip(0) * n / (n - 1)
        return np.where(whole, 0.0, np.sqrt(variance / n * (1 - n / n_cells[:, None])))
