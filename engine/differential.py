"""Differential expression: draws of two populations' expression, compared gene by gene.

'vanilla' asks whether a gene is expressed more in one (Lopez et al. 2018), 'change' how large its log fold change is
(Boyeau et al. 2019). Names, defaults and columns are those of scvi-tools. All draws are chosen first, so that the cells
are passed over once for them and once for the statistics of the counts; memory is that of the draws of one comparison.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Generator

from atlasvi.engine.asked_cells import AskedCells, CountedCells, number_cells
from atlasvi.engine.expression import Drawn, decode_drawn, draw_posterior
from atlasvi.engine.importance import weigh_draws
from atlasvi.engine.latents import read_latents
from atlasvi.engine.model import SCVI
from atlasvi.engine.queries import QueryError
from atlasvi.engine.raw_counts import CountStatistics, count_statistics
from atlasvi.loaders.errors import MissingDependencyError
from atlasvi.loaders.selection import choose_cells

EPSILON = 1e-8
Where = Sequence[int] | Sequence[bool] | np.ndarray | str
"""Cells: their numbers, a mask, or an expression over obs."""


@dataclass(frozen=True)
class Test:
    """How two populations are compared; see scvi-tools' `get_bayes_factors`.

    delta         a log2 fold change within it is no change; None: estimated (needs scikit-learn)
    pseudocounts  added to shares; None: from the genes that are hardly seen
    threshold_counts  mean count below which a gene is hardly seen
    test_mode     'three': up and down apart; 'two': together
    batchid1, batchid2  codes of batches that each population is decoded as, where observed batches are not used
    """

    mode: Literal["vanilla", "change"] = "vanilla"
    delta: float | None = 0.25
    use_observed_batches: bool = True
    batchid1: Sequence[int] | None = None
    batchid2: Sequence[int] | None = None
    n_samples_overall: int = 5000
    use_permutation: bool = False
    m_permutation: int = 10_000
    change_fn: str | Callable | None = None
    m1_domain_fn: Callable | None = None
    pseudocounts: float | None = None
    threshold_counts: float = 0.01
    test_mode: Literal["two", "three"] = "three"
    cred_interval_lvls: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("vanilla", "change"):
            raise NotImplementedError(f"mode {self.mode!r}: choose 'vanilla' or 'change'")
        if self.use_observed_batches and (self.batchid1 is not None or self.batchid2 is not None):
            raise ValueError("batchid1 and batchid2 say as which batches to decode: give batch_correction=True too")


@dataclass
class Comparison:
    """Two groups of cells and what they are called; where they are among `labels`."""

    name1: Any
    name2: Any
    first: np.ndarray  # bool [labels]
    second: np.ndarray


def differential_expression(
    model: SCVI,
    cells: AskedCells,
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
) -> pd.DataFrame:
    """One table of genes for each comparison, one below the other, the most certain genes first.

    groupby, group1, group2  an obs column, groups of it to compare (all if None), with which group (the rest if None)
    idx1, idx2   or two populations, the second the rest if None
    subset_idx   only these cells take part in groups; the rest is 'other'
    all_stats    statistics of the counts too
    weights      'importance' chooses draws that explain many cells of their group (slow: for small groups)
    filter_outlier_cells  groups without the cells far from their others in latent space (needs scikit-learn)
    Raises QueryError or ValueError for groups that are not there or empty, ColumnError for a column that is not.
    """
    labels, comparisons = _compare(cells, groupby, group1, group2, idx1, idx2, subset_idx)
    for comparison in comparisons:
        for name, mask in ((comparison.name1, comparison.first), (comparison.name2, comparison.second)):
            if not mask[labels].any():
                raise QueryError(f"{cells.path}: no cell is of {name!r}: there is nothing to compare.")
    statistics = None
    if isinstance(cells, CountedCells):
        if all_stats or (test.mode == "change" and test.pseudocounts is None):
            statistics = count_statistics(model, cells, labels, len(comparisons[0].first))
    elif all_stats:
        warnings.warn(
            "minified data has no counts, so their statistics are missing: all_stats=False leaves them out",
            UserWarning,
            stacklevel=3,
        )
    plan = _Sampling(model, cells, generator, test, weights, filter_outlier_cells, importance_weighting_kwargs or {})
    for comparison in comparisons:
        plan.add(np.flatnonzero(comparison.first[labels]), range(n_batches) if test.batchid1 is None else test.batchid1)
        plan.add(
            np.flatnonzero(comparison.second[labels]), range(n_batches) if test.batchid2 is None else test.batchid2
        )
    plan.draw()
    tables = []
    for k, comparison in enumerate(comparisons):
        hardly_seen = _hardly_seen(statistics, comparison, test, len(genes))
        values = compare_draws(*plan.decode(2 * k), *plan.decode(2 * k + 1), test, hardly_seen, generator)
        if all_stats:
            values.update(_describe_counts(statistics, comparison, len(genes)))
        table = pd.DataFrame(values, index=genes)
        table = table.sort_values("proba_de" if test.mode == "change" else "bayes_factor", ascending=False)
        if test.mode == "change":
            table[f"is_de_fdr_{fdr_target}"] = control_fdr(table["proba_de"].to_numpy(), fdr_target)
        if idx1 is None:
            name2 = "Rest" if group2 is None else group2
            table["comparison"] = f"{comparison.name1} vs {name2}"
            table["group1"], table["group2"] = comparison.name1, name2
        tables.append(table)
    return pd.concat(tables, axis=0)


def _compare(
    cells: AskedCells,
    groupby: str | None,
    group1: Sequence[Any] | str | None,
    group2: Any,
    idx1: Where | None,
    idx2: Where | None,
    subset_idx: Where | None,
) -> tuple[np.ndarray, list[Comparison]]:
    """int64 [cells]: a label of each cell; the comparisons as masks over labels (the last: cells of no group)."""
    if idx1 is not None:
        labels = np.full(cells.n_cells, 2)
        labels[_find(cells, idx1)] = 0
        if idx2 is not None:
            labels[_find(cells, idx2)] = 1
        two = np.array([False, True, idx2 is None])
        return labels, [Comparison("idx1", "idx2", np.array([True, False, False]), two)]
    if groupby is None:
        raise ValueError("say which cells to compare: groupby (and group1, group2), or idx1 (and idx2)")
    column = cells.read_column(groupby)
    if subset_idx is not None:
        inside = np.zeros(cells.n_cells, bool)
        inside[_find(cells, subset_idx)] = True
        column = column.astype(str).where(inside, "other")
    column = column.astype("category")
    there = column.cat.categories
    labels = column.cat.codes.to_numpy(np.int64)
    labels[labels < 0] = len(there)
    if group1 is None:
        if len(there) == 1:
            raise ValueError(f"{cells.path}: all cells are of {groupby} {there[0]!r}: there is nothing to compare.")
        group1 = there.tolist()
    wanted = [group1] if isinstance(group1, str) or not isinstance(group1, Sequence | np.ndarray | pd.Index) else group1

    def mark(group: Any) -> np.ndarray:
        if group not in there:
            raise QueryError(
                f"{cells.path}: no cell has {groupby} = {group!r} (there are: {', '.join(map(str, there))})."
            )
        return np.append(there == group, False)

    return labels, [
        Comparison(
            g1, "the rest" if group2 is None else group2, mark(g1), ~mark(g1) if group2 is None else mark(group2)
        )
        for g1 in wanted
    ]


def _find(cells: AskedCells, where: Where) -> np.ndarray:
    if isinstance(where, str):
        return np.flatnonzero(choose_cells(cells, where))
    return number_cells(where, cells.n_cells, cells.path)


class _Sampling:
    """Draws of several populations: chosen first, drawn in one pass, decoded one population at a time."""

    def __init__(
        self,
        model: SCVI,
        cells: AskedCells,
        generator: Generator,
        test: Test,
        weights: str | None,
        filter_outliers: bool,
        importance: dict[str, Any],
    ) -> None:
        if weights not in (None, "uniform", "importance"):
            raise ValueError(f"weights {weights!r}: choose 'uniform' or 'importance'")
        self.model, self.cells, self.generator, self.test = model, cells, generator, test
        self.importance = importance if weights == "importance" else None
        self.filter_outliers = filter_outliers
        self._chosen: list[np.ndarray] = []
        self._populations: list[list[tuple[int | None, int]]] = []  # (batch, draws) of each
        self._drawn: Drawn | None = None
        self._weighed: list[Drawn] = []

    def add(self, numbers: np.ndarray, batches: Sequence[int] | range) -> None:
        """A population: the cells with these numbers, decoded as each of the batches in turn."""
        if self.filter_outliers:
            numbers = drop_outliers(self.model, self.cells, numbers)
        as_batches: list[int | None] = [None] if self.test.use_observed_batches else list(batches)
        n = int(self.test.n_samples_overall / len(as_batches))
        if n == 0:
            warnings.warn("there are more batches than samples: two are drawn of each", UserWarning, stacklevel=4)
            n = 2
        self._populations.append([(batch, n) for batch in as_batches])
        for _ in as_batches:
            if self.importance is None:
                self._chosen.append(numbers[_integers(len(numbers), n, self.generator)])
            else:
                self._weighed.append(self._draw_weighed(numbers, n))

    def _draw_weighed(self, numbers: np.ndarray, n: int) -> Drawn:
        if not isinstance(self.cells, CountedCells):
            raise QueryError(f"{self.cells.path}: importance weights need the counts, and minified data has none.")
        assert self.importance is not None
        drawn = draw_posterior(self.model, self.cells, self.generator, np.tile(numbers, n // len(numbers) + 1))
        shares = weigh_draws(self.model, self.cells, self.generator, numbers, drawn, **self.importance)
        return drawn.take(choose_weighed(shares, n, self.generator))

    def draw(self) -> None:
        """Draw all that was chosen, in one pass over the cells."""
        if self._chosen:
            self._drawn = draw_posterior(self.model, self.cells, self.generator, np.concatenate(self._chosen))

    def decode(self, population: int) -> tuple[np.ndarray, np.ndarray]:
        """Shares float32 [draws, genes] of a population, and float64 [draws] the batch each was decoded as (or NaN)."""
        before = sum(len(parts) for parts in self._populations[:population])
        at = sum(n for parts in self._populations[:population] for _, n in parts)
        shares: list[np.ndarray] = []
        batches: list[np.ndarray] = []
        for k, (batch, n) in enumerate(self._populations[population]):
            if self._drawn is not None:
                drawn = self._drawn.take(slice(at, at + n))
                at += n
            else:
                drawn = self._weighed[before + k]
            shares.extend(part.shares.cpu().numpy() for part in decode_drawn(self.model, drawn, batch))
            batches.append(np.full(n, np.nan if batch is None else batch))
        return np.concatenate(shares), np.concatenate(batches)


def _integers(below: int, n: int, generator: Generator) -> np.ndarray:
    return torch.randint(below, (n,), generator=generator, device=generator.device).cpu().numpy()


def choose_weighed(probabilities: np.ndarray, n: int, generator: Generator) -> torch.Tensor:
    """int64 [n]: numbers drawn with these probabilities, with replacement."""
    edges = np.cumsum(probabilities)
    uniform = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64).cpu().numpy()
    return torch.from_numpy(np.searchsorted(edges / edges[-1], uniform, side="right").clip(max=len(edges) - 1))


def compare_draws(
    shares1: np.ndarray,
    batches1: np.ndarray,
    shares2: np.ndarray,
    batches2: np.ndarray,
    test: Test,
    hardly_seen: tuple[np.ndarray, np.ndarray] | None,
    generator: Generator,
) -> dict[str, Any]:
    """Probabilities and effect sizes of each gene from draws of two populations' expression.

    shares1, shares2    float [draws, genes]
    batches1, batches2  float [draws]: as which batch each was decoded, NaN: as its own
    hardly_seen         bool [genes] each: genes below threshold_counts in either (mode change without pseudocounts)
    """
    mean1, mean2 = shares1.mean(0), shares2.mean(0)
    first, second = _pair(shares1, batches1, shares2, batches2, test, generator)
    if test.mode == "vanilla":
        proba_m1 = np.mean(first > second, 0)
        proba_m2 = 1.0 - proba_m1
        return {
            "proba_m1": proba_m1,
            "proba_m2": proba_m2,
            "bayes_factor": np.log(proba_m1 + EPSILON) - np.log(proba_m2 + EPSILON),
            "scale1": mean1,
            "scale2": mean2,
        }
    pseudocounts = test.pseudocounts
    if pseudocounts is None:
        assert hardly_seen is not None
        pseudocounts = estimate_pseudocounts(first, second, *hardly_seen)
    change = _change_function(test.change_fn)
    effects = change(first, second, pseudocounts)
    delta = estimate_delta(effects.mean(0)) if test.delta is None else test.delta
    up, down = (effects >= delta, effects < -delta) if test.m1_domain_fn is None else test.m1_domain_fn(effects)
    proba_up, proba_down = np.mean(up, 0), np.mean(down, 0)
    proba_de = proba_up + proba_down if test.test_mode == "two" else np.maximum(proba_up, proba_down)
    # fewer pseudocounts here, so that the fold changes themselves are not shrunk
    effects = change(first, second, 1e-3 * pseudocounts)
    return {
        "proba_de": proba_de,
        "proba_not_de": 1.0 - proba_de,
        "bayes_factor": np.log(proba_de + EPSILON) - np.log(1.0 - proba_de + EPSILON),
        "scale1": mean1,
        "scale2": mean2,
        "pseudocounts": pseudocounts,
        "delta": delta,
        **{f"lfc_{name}": values for name, values in describe_draws(effects, test.cred_interval_lvls or ()).items()},
    }


def _pair(
    shares1: np.ndarray,
    batches1: np.ndarray,
    shares2: np.ndarray,
    batches2: np.ndarray,
    test: Test,
    generator: Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of both populations side by side: of the same batch where both were decoded as the same ones."""
    known1, known2 = (np.unique(batches[~np.isnan(batches)]) for batches in (batches1, batches2))
    if len(known1) and np.array_equal(known1, known2):
        parts = [(shares1[batches1 == batch], shares2[batches2 == batch]) for batch in known1]
    else:
        if np.intersect1d(known1, known2).size:
            warnings.warn(
                "batchid1 and batchid2 are different and share some batches: pairs are of any two, so what the batches "
                "do is not corrected for",
                UserWarning,
                stacklevel=4,
            )
        parts = [(shares1, shares2)]
    if test.use_permutation:
        n = test.m_permutation // len(parts)
        parts = [(a[_integers(len(a), n, generator)], b[_integers(len(b), n, generator)]) for a, b in parts]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def _change_function(given: str | Callable | None) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    if given is None or given == "log-fold":
        return lambda x, y, pseudocounts: np.log2(x + pseudocounts) - np.log2(y + pseudocounts)
    if not callable(given) or len(inspect.getfullargspec(given).args) != 3:
        raise ValueError("change_fn must be 'log-fold' or a function of (shares1, shares2, pseudocounts)")
    return given


def estimate_pseudocounts(
    first: np.ndarray, second: np.ndarray, unseen1: np.ndarray, unseen2: np.ndarray, quantile: float = 0.9
) -> float:
    """What to add to shares so that the fold changes of genes that are hardly seen shrink to zero; at least 1e-10."""
    largest = [
        np.quantile(shares.max(0)[unseen], quantile) if unseen.any() else 1e-10
        for shares, unseen in ((first, unseen1), (second, unseen2))
    ]
    return float(max(1e-10, max(largest) / first.shape[1]))


def estimate_delta(effects: np.ndarray, coefficient: float = 0.6, least: float = 0.1) -> float:
    """A threshold from the modes of the genes' mean log fold changes [genes]: a mixture of three normals."""
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise MissingDependencyError("delta=None needs scikit-learn: pip install 'atlasvi[statistics]'.") from None
    modes = np.sort(GaussianMixture(n_components=3, random_state=0).fit(effects[:, None]).means_.squeeze())
    return float(max(least, coefficient * np.abs(modes[[0, -1]]).mean()))


def describe_draws(draws: np.ndarray, levels: Sequence[float] = ()) -> dict[str, np.ndarray]:
    """Mean, median, std, min and max of draws [draws, genes], and narrowest intervals that hold a share of them."""
    said = {
        "mean": draws.mean(0),
        "median": np.median(draws, 0),
        "std": draws.std(0),
        "min": draws.min(0),
        "max": draws.max(0),
    }
    ordered = np.sort(draws, axis=0) if len(levels) else draws
    for level in levels:
        n_inside = int(np.floor(level * len(draws)))
        if not 0 <= n_inside < len(draws):
            raise ValueError(f"a credible interval of {level}: levels are from 0 to below 1")
        start = np.argmin(ordered[n_inside:] - ordered[: len(draws) - n_inside], axis=0)
        for name, rows in (("min", start), ("max", start + n_inside)):
            said[f"confidence_interval_{str(level)[:5]}_{name}"] = np.take_along_axis(ordered, rows[None], 0)[0]
    return said


def control_fdr(probabilities: np.ndarray, target: float) -> np.ndarray:
    """bool [genes]: those to call, so that of them a share of `target` is expected to be false; probabilities fall."""
    expected = np.cumsum(1.0 - probabilities) / (1.0 + np.arange(len(probabilities)))
    return np.arange(len(probabilities)) < (expected <= target).sum()


def drop_outliers(model: SCVI, cells: AskedCells, numbers: np.ndarray) -> np.ndarray:
    """Cells of a population without those far from the others in latent space, by a robust covariance."""
    try:
        from sklearn.covariance import EllipticEnvelope
    except ImportError:
        raise MissingDependencyError(
            "filter_outlier_cells needs scikit-learn: pip install 'atlasvi[statistics]'."
        ) from None
    latents = read_latents(model, cells, numbers)[0]
    try:
        return numbers[EllipticEnvelope(random_state=0).fit_predict(latents) == 1]
    except ValueError:
        warnings.warn("the covariance of a group could not be estimated: all its cells stay", stacklevel=3)
        return numbers


def _hardly_seen(
    statistics: CountStatistics | None, comparison: Comparison, test: Test, n_genes: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Which genes are below threshold_counts in either population; without counts, as scvi-tools has it, all."""
    if test.mode != "change" or test.pseudocounts is not None:
        return None
    if statistics is None:
        return np.ones(n_genes, bool), np.ones(n_genes, bool)
    return (
        statistics.mean(comparison.first).counts < test.threshold_counts,
        statistics.mean(comparison.second).counts < test.threshold_counts,
    )


def _describe_counts(statistics: CountStatistics | None, comparison: Comparison, n_genes: int) -> dict[str, np.ndarray]:
    if statistics is None:
        missing = np.full(n_genes, np.nan)
        means = [(missing, missing, missing)] * 2
    else:
        means = [tuple(statistics.mean(mask)) for mask in (comparison.first, comparison.second)]  # type: ignore[misc]
    names = ("raw_mean", "non_zeros_proportion", "raw_normalized_mean")
    return {f"{name}{side + 1}": means[side][k] for k, name in enumerate(names) for side in (0, 1)}
