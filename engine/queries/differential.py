"""Differential expression: draws of two populations' expression, compared gene by gene.

'vanilla' tests whether a gene is expressed more in one population (Lopez et al. 2018), 'change' the size of its log
fold change (Boyeau et al. 2019). Names, defaults and columns are those of scvi-tools. Several comparisons share a pass
over the cells: their draws are chosen first, then drawn in one pass, and the counts are summed in another. `PASS_BYTES`
limits how many share a pass, so only the memory for the table grows with the number of groups.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Generator

from atlasvi.engine.model.covariates import find_categories, to_category
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.cell_choice import Where, mark_cells
from atlasvi.engine.queries.count_statistics import CountStatistics, count_statistics
from atlasvi.engine.queries.draw_comparison import Test, compare_draws, control_fdr, draw_integers
from atlasvi.engine.queries.expression import Drawn, decode_drawn, draw_posterior
from atlasvi.engine.queries.labels import Members
from atlasvi.engine.queries.latents import read_latents
from atlasvi.engine.queries.population import check_weights, draw_weighed
from atlasvi.engine.queries.question_cells import CountedCells, QueryError, QuestionCells
from atlasvi.loaders.cells.coded_columns import CodedColumn, code_column, count_codes, recode
from atlasvi.loaders.errors import AtlasviWarning, MissingDependencyError

Report = Callable[[str, int, int], None]
PASS_BYTES = 2**28  # memory for draws and sums of counts: limits how many comparisons share a pass


@dataclass
class Comparison:
    """Two groups of cells, their names, and the labels of their cells."""

    name1: Any
    name2: Any
    first: np.ndarray  # bool [labels]
    second: np.ndarray


def differential_expression(
    model: VAE,
    cells: QuestionCells,
    genes: pd.Index,
    generator: Generator,
    test: Test,
    *,
    n_batches: int = 1,
    groupby: str | None = None,
    group1: Sequence[Any] | str | None = None,
    group2: Any = None,
    idx1: Where | None = None,
    idx2: Where | None = None,
    subset_idx: Where | None = None,
    all_stats: bool = True,
    fdr_target: float = 0.05,
    weights: Literal["uniform", "importance"] | None = "uniform",
    filter_outlier_cells: bool = False,
    importance_weighting_kwargs: dict[str, Any] | None = None,
    progress: Report = lambda stage, done, total: None,
) -> pd.DataFrame:
    """The genes' tables of all comparisons, one below the other; in each, the most certain genes come first.

    groupby, group1, group2  obs column, groups to compare (None: all but group2), group to compare with (None: all
                 other cells)
    idx1, idx2   instead of these, two populations; idx2 None: all other cells
    subset_idx   use only these cells as members of groups; the others form the group 'other'
    all_stats    add statistics of the counts
    weights      'importance' chooses draws that explain many cells of their group (slow: for small groups)
    filter_outlier_cells  drop cells far from the others of their group in latent space (needs scikit-learn)
    Arguments that have no effect, which scvi-tools ignores too, are named in a warning.
    Raises QueryError for a group that does not exist, is empty or is compared with itself, ColumnError if the column
    does not exist.
    """
    if not 0 <= fdr_target <= 1:
        raise QueryError(f"fdr_target is {fdr_target}: a proportion of false discoveries is from 0 to 1.")
    _warn_unused("only mode 'change' uses it", **dict.fromkeys(test.list_unused(), True))
    labels, comparisons = _compare(cells, groupby, group1, group2, idx1, idx2, subset_idx)
    sizes = count_codes(labels, len(comparisons[0].first)) if comparisons else np.empty(0)
    for comparison in comparisons:
        for name, mask in ((comparison.name1, comparison.first), (comparison.name2, comparison.second)):
            if not sizes[mask].sum():
                raise QueryError(f"{cells.path}: {name!r} has no cells: there is nothing to compare.")
    if all_stats and not isinstance(cells, CountedCells):
        warnings.warn(
            "minified data has no counts, so the answer has no statistics of them: all_stats=False avoids this warning",
            AtlasviWarning,
            stacklevel=3,
        )
    tables = []
    size = max(PASS_BYTES // _measure_comparison(model, test), 1)
    for at in range(0, len(comparisons), size):
        some, merged = merge_labels(comparisons[at : at + size])
        plan = _Sampling(
            model, cells, generator, test, weights, filter_outlier_cells, importance_weighting_kwargs or {}
        )
        new_labels = recode(labels, merged, np.min_scalar_type(int(merged.max())))
        found = _compare_some(model, cells, generator, test, some, new_labels, plan, n_batches, all_stats)
        for comparison, values in zip(some, found):
            table = pd.DataFrame(values, index=genes)
            table = table.sort_values("proba_de" if test.mode == "change" else "bayes_factor", ascending=False)
            if test.mode == "change":
                table[f"is_de_fdr_{fdr_target}"] = control_fdr(table["proba_de"].to_numpy(), fdr_target)
            if idx1 is None:
                name2 = "Rest" if group2 is None else group2
                table["comparison"] = f"{comparison.name1} vs {name2}"
                table["group1"], table["group2"] = comparison.name1, name2
            tables.append(table)
            progress("comparing", len(tables), len(comparisons))
    return pd.concat(tables, axis=0)


def _measure_comparison(model: VAE, test: Test) -> int:
    """Bytes that one comparison needs in a pass: draws of both populations, and the sums of counts of a label."""
    settings = model.settings
    covariates = 2 + len(settings.n_categories) + settings.n_continuous  # at most 8 bytes each
    return 2 * test.n_samples_overall * (4 * settings.n_latent + 8 * covariates) + 3 * 8 * settings.n_genes


def merge_labels(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], np.ndarray]:
    """The comparisons with as few labels as possible, and int64 [labels]: the new label of each old one.

    Labels that are in the same group in every comparison are merged, so that there are fewer sums of counts.
    """
    masks = np.array([mask for each in comparisons for mask in (each.first, each.second)])
    kinds, merged = np.unique(masks, axis=1, return_inverse=True)
    return [
        replace(each, first=kinds[2 * k], second=kinds[2 * k + 1]) for k, each in enumerate(comparisons)
    ], merged.ravel()


def _compare_some(
    model: VAE,
    cells: QuestionCells,
    generator: Generator,
    test: Test,
    comparisons: Sequence[Comparison],
    labels: np.ndarray,
    plan: "_Sampling",
    n_batches: int,
    all_stats: bool,
) -> Iterator[dict[str, Any]]:
    """The columns of the table of each comparison, for comparisons that share a pass over the cells."""
    statistics, n_genes = None, model.settings.n_genes
    if isinstance(cells, CountedCells) and (all_stats or (test.mode == "change" and test.pseudocounts is None)):
        statistics = count_statistics(model, cells, labels, len(comparisons[0].first))
    for comparison in comparisons:
        plan.add(Members(labels, comparison.first), range(n_batches) if test.batchid1 is None else test.batchid1)
        plan.add(Members(labels, comparison.second), range(n_batches) if test.batchid2 is None else test.batchid2)
    plan.draw()
    for k, comparison in enumerate(comparisons):
        hardly_seen = find_hardly_seen(statistics, comparison, test, n_genes)
        values = compare_draws(*plan.decode(2 * k), *plan.decode(2 * k + 1), test, hardly_seen, generator)
        if all_stats:
            values.update(describe_counts(statistics, comparison, n_genes))
        yield values


def _compare(
    cells: QuestionCells,
    groupby: str | None,
    group1: Sequence[Any] | str | None,
    group2: Any,
    idx1: Where | None,
    idx2: Where | None,
    subset_idx: Where | None,
) -> tuple[np.ndarray, list[Comparison]]:
    """A label of each cell, in the narrowest unsigned dtype, [cells]; and the comparisons as masks over labels (the
    last label: no group).
    """
    if idx1 is not None:
        _warn_unused("idx1 chooses the cells", groupby=groupby, group1=group1, group2=group2, subset_idx=subset_idx)
        labels = np.where(mark_cells(cells, idx1), np.uint8(0), np.uint8(2))
        if idx2 is not None:
            second = mark_cells(cells, idx2)
            if n_both := int(np.count_nonzero(labels[second] == 0)):
                warnings.warn(
                    f"{n_both:,} cells are in idx1 and in idx2: they count in idx2 alone, as in scvi-tools.",
                    AtlasviWarning,
                    stacklevel=2,
                )
            labels[second] = 1
        two = np.array([False, True, idx2 is None])
        return labels, [Comparison("idx1", "idx2", np.array([True, False, False]), two)]
    if isinstance(group2, list | tuple | set | np.ndarray | pd.Index | pd.Series):
        raise QueryError(
            "group2 is one group, or None for the rest: to compare with several, pass masks over the cells, idx1 and "
            "idx2."
        )
    if groupby is None:
        raise QueryError("No cells to compare: pass groupby (and group1, group2), or idx1 (and idx2).")
    _warn_unused("without idx1, the groups are those of groupby", idx2=idx2)
    if subset_idx is None:
        column = code_column(cells, groupby).drop_unused()
    else:
        text = cells.read_column(groupby).astype(str).where(mark_cells(cells, subset_idx), "other").astype("category")
        column = CodedColumn(text.cat.codes.to_numpy(), text.cat.categories).drop_unused()
    there = column.categories
    labels = recode(column.codes, np.arange(len(there) + 1), np.min_scalar_type(len(there)))  # the last: no group

    def mark(group: Any) -> np.ndarray:
        place = find_categories([to_category(value) for value in there], [to_category(group)])[0]
        if place is None:
            raise QueryError(
                f"{cells.path}: no cell has {groupby} = {group!r} (there are: {', '.join(map(str, there))})."
            )
        return np.append(np.arange(len(there)) == place, False)

    if group1 is None:
        if len(there) < 2:
            raise QueryError(f"{cells.path}: obs column {groupby!r} has {len(there)} group(s): nothing to compare.")
        group1 = there.tolist()
        group1 = group1 if group2 is None else [group for k, group in enumerate(group1) if not mark(group2)[k]]
    wanted = [group1] if isinstance(group1, str) or not isinstance(group1, Sequence | np.ndarray | pd.Index) else group1
    if not len(wanted):
        raise QueryError("group1 is an empty list: leave it out to compare all groups.")
    comparisons = []
    for group in wanted:
        inside = mark(group)
        others = ~inside if group2 is None else mark(group2)
        if (inside & others).any():
            raise QueryError(f"{cells.path}: {groupby} = {group!r} is group1 and group2: name two different groups.")
        comparisons.append(Comparison(group, "the rest" if group2 is None else group2, inside, others))
    return labels, comparisons


def _warn_unused(reason: str, **arguments: Any) -> None:
    """Warn of arguments that were given and have no effect."""
    if given := [name for name, value in arguments.items() if value is not None]:
        warnings.warn(f"{', '.join(given)} has no effect: {reason}.", AtlasviWarning, stacklevel=4)


class _Sampling:
    """Draws of several populations: chosen first, drawn in one pass, then decoded one population at a time."""

    def __init__(
        self,
        model: VAE,
        cells: QuestionCells,
        generator: Generator,
        test: Test,
        weights: str | None,
        filter_outliers: bool,
        importance: dict[str, Any],
    ) -> None:
        check_weights(weights, test.n_samples_overall, importance)
        self.model, self.cells, self.generator, self.test = model, cells, generator, test
        self.importance = importance if weights == "importance" else None
        self.filter_outliers = filter_outliers
        self._chosen: list[np.ndarray] = []
        self._populations: list[list[tuple[int | None, int]]] = []  # for each population: (batch, number of draws)
        self._drawn: Drawn | None = None
        self._weighed: list[Drawn] = []

    def add(self, members: Members, batches: Sequence[int] | range) -> None:
        """Add a population: these cells, decoded as each of these batches in turn."""
        model, cells, generator = self.model, self.cells, self.generator
        if self.filter_outliers:
            members = Members.of(drop_outliers(model, cells, members.to_indices()), cells.n_cells)
        as_batches: list[int | None] = [None] if self.test.use_observed_batches else list(batches)
        n = int(self.test.n_samples_overall / len(as_batches))
        if n == 0:
            warnings.warn("there are more batches than samples: two are drawn of each", AtlasviWarning, stacklevel=4)
            n = 2
        self._populations.append([(batch, n) for batch in as_batches])
        for _ in as_batches:
            if self.importance is None:
                self._chosen.append(members.take(draw_integers(len(members), n, generator)))
            else:
                indices = members.to_indices()
                self._weighed.append(draw_weighed(model, cells, generator, indices, n, **self.importance))

    def draw(self) -> None:
        """Make all chosen draws, in one pass over the cells."""
        if self._chosen:
            self._drawn = draw_posterior(self.model, self.cells, self.generator, np.concatenate(self._chosen))

    def decode(self, population: int) -> tuple[np.ndarray, np.ndarray]:
        """Proportions float32 [draws, genes] of a population, and float64 [draws] the batches decoded as (NaN: own)."""
        before = sum(len(parts) for parts in self._populations[:population])
        at = sum(n for parts in self._populations[:population] for _, n in parts)
        proportions: list[np.ndarray] = []
        batches: list[np.ndarray] = []
        for k, (batch, n) in enumerate(self._populations[population]):
            if self._drawn is not None:
                drawn = self._drawn.take(slice(at, at + n))
                at += n
            else:
                drawn = self._weighed[before + k]
            proportions.extend(part.proportions.cpu().numpy() for part in decode_drawn(self.model, drawn, batch))
            batches.append(np.full(n, np.nan if batch is None else batch))
        return np.concatenate(proportions), np.concatenate(batches)


def drop_outliers(model: VAE, cells: QuestionCells, indices: np.ndarray) -> np.ndarray:
    """The cells of a population without outliers in latent space, found by a robust covariance."""
    try:
        from sklearn.covariance import EllipticEnvelope
    except ImportError:
        raise MissingDependencyError(
            "filter_outlier_cells needs scikit-learn: pip install 'atlasvi[statistics]'."
        ) from None
    latents = read_latents(model, cells, indices)[0]
    try:
        return indices[EllipticEnvelope(random_state=0).fit_predict(latents) == 1]
    except ValueError:
        warnings.warn(
            "the covariance of a group could not be estimated: it keeps all its cells", AtlasviWarning, stacklevel=3
        )
        return indices


def find_hardly_seen(
    statistics: CountStatistics | None, comparison: Comparison, test: Test, n_genes: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Which genes are below threshold_counts in either population; without counts all of them, as in scvi-tools."""
    if test.mode != "change" or test.pseudocounts is not None:
        return None
    if statistics is None:
        return np.ones(n_genes, bool), np.ones(n_genes, bool)
    return (
        statistics.mean(comparison.first).counts < test.threshold_counts,
        statistics.mean(comparison.second).counts < test.threshold_counts,
    )


def describe_counts(statistics: CountStatistics | None, comparison: Comparison, n_genes: int) -> dict[str, np.ndarray]:
    """Columns of the table about the counts of both groups, float64 [genes] each; NaN without counts."""
    if statistics is None:
        missing = np.full(n_genes, np.nan)
        means = [(missing, missing, missing)] * 2
    else:
        means = [tuple(statistics.mean(mask)) for mask in (comparison.first, comparison.second)]  # type: ignore[misc]
    names = ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    return {f"{name}{side + 1}": means[side][k] for k, name in enumerate(names) for side in (0, 1)}
