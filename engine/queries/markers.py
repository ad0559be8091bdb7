"""Marker genes of labels, and genes that differ between two selections of cells: differential expression of an atlas.

scVI's test of the size of the change (Boyeau et al. 2019), with scvi-tools' columns and numbers: the draws have the
same distribution, but all comparisons share them (see `shared_draws`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.engine.model.covariates import find_categories, to_category
from atlasvi.engine.queries.cell_choice import Where, mark_cells, name_some
from atlasvi.engine.queries.count_statistics import count_statistics
from atlasvi.engine.queries.differential import Comparison, describe_counts, find_hardly_seen
from atlasvi.engine.queries.draw_comparison import Test, control_fdr, expect_false
from atlasvi.engine.queries.opened_question import Asked, OpenedQuestion, ask
from atlasvi.engine.queries.question_cells import CountedCells, QueryError, need_at_least
from atlasvi.engine.queries.shared_draws import Report, compare_shared
from atlasvi.loaders.cells.coded_columns import code_column, count_codes, recode

REST = "Rest"  # scvi-tools' name of all other cells


def markers(
    asked: Asked,
    labels_key: str,
    *,
    labels: Sequence[Any] | None = None,
    chosen: np.ndarray | None = None,
    top: int | None = None,
    n_samples: int = 5_000,
    delta: float = 0.25,
    fdr_target: float = 0.05,
    pseudocounts: float | None = None,
    batch_correction: bool = False,
    seed: int = 0,
    progress: Report = lambda stage, done, total: None,
) -> pd.DataFrame:
    """Each label of an obs column compared with all other cells: a table of genes for each label, one below the other.

    asked       a question that was opened, a minified store, or its path
    labels_key  obs column; cells without a label belong to the rest of every label
    labels      the labels to compare; None: all
    chosen      ascending int64 indices of the cells to use; the others are no part of any group; None: all
    top         number of genes for each label; None: all of them
    n_samples   draws of the posterior for each group
    delta       log2 fold changes up to this size are no change
    fdr_target  expected proportion of false discoveries, for the column `is_de_fdr_...`
    pseudocounts  added to proportions before the logarithm; None: as scvi-tools estimates them
    batch_correction  decode both groups as each of the model's batches in turn
    Rows: index `gene`. Genes that are higher in the label come first, the most certain ones first of all, then those
    that are lower, the most certain ones last, so that `top` keeps the best markers. Columns:
        proba_de, proba_not_de, bayes_factor   probability of a change larger than delta in the likelier direction
        scale1, scale2                         mean decoded proportion in the label, and in the other cells
        pseudocounts, delta                    as used
        lfc_mean, lfc_median, lfc_std, lfc_min, lfc_max   log2 fold change, over pairs of draws
        raw_mean1, ..., raw_normalized_mean2   statistics of the counts, if the cells have counts
        fdr                                    expected proportion of false discoveries among this gene and all genes of
                                               the label with a higher proba_de
        is_de_fdr_{fdr_target}                 whether the gene is among those that keep fdr below the target
        comparison, group1, group2             what was compared
    Raises ColumnError if the column does not exist, QueryError for an unknown label, or if there are fewer than two.
    """
    opened = ask(asked)
    need_at_least(1, top=top)
    column = code_column(opened.cells, labels_key)
    categories = [to_category(value) for value in column.categories]
    n_labels = len(categories)
    # two more labels: cells whose own is missing, which belong to the rest, and cells that were not chosen
    codes = recode(column.codes, np.arange(n_labels + 1), np.min_scalar_type(n_labels + 1))
    if chosen is not None:
        mask = np.ones(len(codes), bool)
        mask[chosen] = False
        codes[mask] = n_labels + 1
    sizes = count_codes(codes, n_labels + 2)
    present = np.flatnonzero(sizes[:n_labels])
    if labels is not None:
        present = _find_labels(opened, labels_key, labels, categories, sizes)
    everyone = np.append(np.ones(n_labels + 1, bool), False)
    comparisons = []
    for label in present:
        first = np.arange(n_labels + 2) == label
        if not sizes[everyone & ~first].sum():
            raise QueryError(
                f"{opened.cells.path}: all these cells have {labels_key} = {categories[label]!r}: nothing to compare."
            )
        comparisons.append(Comparison(categories[label], REST, first, everyone & ~first))
    if not comparisons:
        raise QueryError(f"{opened.cells.path}: none of these cells has a value of {labels_key!r}: nothing to compare.")
    test = _make_test(opened, n_samples, delta, pseudocounts, batch_correction)
    tables = []
    for comparison, table in _compare(opened, test, codes, sizes, comparisons, fdr_target, seed, progress):
        tables.append(_name_groups(_order_by_direction(table).iloc[:top], comparison))
    return pd.concat(tables)


def compare(
    asked: Asked,
    first: Where,
    second: Where | None = None,
    *,
    top: int | None = None,
    n_samples: int = 5_000,
    delta: float = 0.25,
    fdr_target: float = 0.05,
    pseudocounts: float | None = None,
    batch_correction: bool = False,
    seed: int = 0,
    progress: Report = lambda stage, done, total: None,
) -> pd.DataFrame:
    """Two selections of cells compared with each other: a table of genes, the most certain changes first.

    first, second  conditions or expressions over obs, masks or indices (see `find_cells`); second None: all other cells
    The other arguments and the columns are those of `markers`; lfc_mean is above 0 where `first` has more.
    Raises QueryError if a selection is empty, or if a cell is in both.
    """
    opened = ask(asked)
    need_at_least(1, top=top)
    labels = np.full(opened.cells.n_cells, 2 if second is not None else 1, np.uint8)
    labels[mark_cells(opened.cells, first)] = 0
    if second is not None:
        inside = mark_cells(opened.cells, second)
        if n_both := int(np.count_nonzero(labels[inside] == 0)):
            raise QueryError(
                f"{opened.cells.path}: {n_both:,} cells are in both selections: a cell can be in one of them only."
            )
        labels[inside] = 1
    sizes = count_codes(labels, 3)
    for size, name in zip(sizes[:2].tolist(), ("first", "second")):
        if not size:
            raise QueryError(f"{opened.cells.path}: the {name} selection has no cells: there is nothing to compare.")
    named = second if second is not None else REST
    comparison = Comparison(
        _name(first, "first"), _name(named, "second"), np.array([True, False, False]), np.array([False, True, False])
    )
    test = _make_test(opened, n_samples, delta, pseudocounts, batch_correction)
    ((_, table),) = _compare(opened, test, labels, sizes, [comparison], fdr_target, seed, progress)
    order = np.lexsort((-table["lfc_mean"].abs().to_numpy(), -table["proba_de"].to_numpy()))
    return _name_groups(table.iloc[order[:top]], comparison)


def _make_test(
    opened: OpenedQuestion, n_samples: int, delta: float, pseudocounts: float | None, batch_correction: bool
) -> Test:
    if pseudocounts is not None and not 0 < pseudocounts < np.inf:
        raise QueryError(f"pseudocounts is {pseudocounts}: it must be a number above 0, or None to estimate it.")
    batches = list(range(opened.run.model.settings.n_batches)) if batch_correction else None
    return Test(
        mode="change",
        delta=delta,
        use_observed_batches=not batch_correction,
        batchid1=batches,
        n_samples_overall=n_samples,
        pseudocounts=pseudocounts,
    )


def _find_labels(
    opened: OpenedQuestion, key: str, wanted: Sequence[Any], categories: Sequence[Any], sizes: np.ndarray
) -> np.ndarray:
    """int64: the codes of the wanted labels. Raises QueryError for one that no cell has."""
    places = find_categories(categories, [to_category(value) for value in wanted])
    for value, place in zip(wanted, places):
        if place is None or not sizes[place]:
            known = [str(name) for name, size in zip(categories, sizes) if size]
            raise QueryError(f"{opened.cells.path}: no cell has {key} = {value!r} (there are: {name_some(known)}).")
    return np.array(list(dict.fromkeys(places)), np.int64)


def _compare(
    opened: OpenedQuestion,
    test: Test,
    labels: np.ndarray,
    sizes: np.ndarray,
    comparisons: Sequence[Comparison],
    fdr_target: float,
    seed: int,
    progress: Report,
) -> Iterator[tuple[Comparison, pd.DataFrame]]:
    """Each comparison with its table of all genes; with `fdr`, and statistics of the counts if there are any."""
    if not 0 <= fdr_target <= 1:
        raise QueryError(f"fdr_target is {fdr_target}: a proportion of false discoveries is from 0 to 1.")
    model, genes = opened.run.model, pd.Index(opened.run.genes, name="gene")
    statistics = None
    if isinstance(opened.cells, CountedCells):
        statistics = count_statistics(model, opened.cells, labels, len(sizes))
    found = compare_shared(
        model,
        opened.cells,
        opened.make_generator(seed),
        test,
        labels,
        sizes,
        comparisons,
        lambda comparison: find_hardly_seen(statistics, comparison, test, len(genes)),
        progress,
    )
    for comparison, values in found:
        if statistics is not None:
            values.update(describe_counts(statistics, comparison, len(genes)))
        order = np.argsort(-values["proba_de"], kind="stable")
        back, descending = np.argsort(order), values["proba_de"][order]
        values["fdr"] = expect_false(descending)[back]
        values[f"is_de_fdr_{fdr_target}"] = control_fdr(descending, fdr_target)[back]
        yield comparison, pd.DataFrame(values, index=genes)


def _order_by_direction(table: pd.DataFrame) -> pd.DataFrame:
    """From the genes that are most certainly higher in the first group to those that are most certainly lower."""
    change = table["lfc_mean"].to_numpy()
    return table.iloc[np.lexsort((-change, -np.sign(change) * table["proba_de"].to_numpy()))]


def _name_groups(table: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """The table with the columns that say what was compared."""
    one, other = comparison.name1, comparison.name2
    return table.assign(comparison=f"{one} vs {other}", group1=one, group2=other)


def _name(where: Any, default: str) -> str:
    return where if isinstance(where, str) else default
