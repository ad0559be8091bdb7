"""Of each label and gene: sums of normalised log counts that can be added; from them Welch's t-test against the rest.

As scanpy: counts scaled to 10,000 per cell, log1p, `rank_genes_groups(method="t-test")`, whose score is t.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numba import njit
from scipy import sparse, stats

NORMALISED_LIBRARY = 1e4
SMALL_COUNTS = 16  # most counts are smaller: their logarithms are computed once a cell
LEAST_FRACTION = 1e-9  # scanpy's, in fold changes
LEAST_VARIANCE = 1e-13  # relative to the mean square: what remains of a constant gene by rounding


@dataclass(frozen=True)
class GroupTests:
    """A test of each label against all other cells, float64 [labels, genes] each; NaN for a label without a test.

    scores      the test's statistic: above 0 where the label's counts are higher
    p_values    two-sided; adjusted  the same by Benjamini and Hochberg, over the genes of a label
    log2_fold_changes  of means of the normalised counts (expm1 of the means of logarithms, as scanpy)
    untested    why a label has no test, by its code
    A gene that is constant in a label and in the rest alike has a score of 0 and a p of 1.
    """

    scores: np.ndarray
    p_values: np.ndarray
    adjusted: np.ndarray
    log2_fold_changes: np.ndarray
    untested: dict[int, str]


@dataclass
class LabelMoments:
    """n_cells int64 [labels]; sums over the cells of each label of log1p of normalised counts, and of their squares:
    float64 [labels, genes]."""

    n_cells: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, n_labels: int, n_genes: int) -> Self:
        """Of no cells."""
        return cls(np.zeros(n_labels, np.int64), *np.zeros((2, n_labels, n_genes)))

    def add(self, counts: sparse.csr_matrix, labels: np.ndarray) -> None:
        """Add the cells (rows) of a matrix of counts; labels int [cells], below 0 for a cell without one."""
        self.n_cells += np.bincount(labels[labels >= 0], minlength=len(self.n_cells))
        _add_by_label(counts.indptr, counts.indices, counts.data, labels, self.sums, self.squares)

    def __add__(self, other: "LabelMoments") -> "LabelMoments":
        return LabelMoments(self.n_cells + other.n_cells, self.sums + other.sums, self.squares + other.squares)

    def welch_tests(self) -> GroupTests:
        """Welch's t-test of each label that has at least two cells, and two in the rest."""
        n, all_sums, all_squares = int(self.n_cells.sum()), self.sums.sum(0), self.squares.sum(0)
        untested = explain_untested(self.n_cells)
        shape = self.sums.shape
        scores, p_values, adjusted, changes = (np.full(shape, np.nan) for _ in range(4))
        for label in range(shape[0]):
            if label in untested:
                continue
            n_label = int(self.n_cells[label])
            mean, variance = _describe(n_label, self.sums[label], self.squares[label])
            rest = all_sums - self.sums[label], all_squares - self.squares[label]
            rest_mean, rest_variance = _describe(n - n_label, *rest)
            with np.errstate(invalid="ignore", divide="ignore"):
                t, p = stats.ttest_ind_from_stats(
                    mean, np.sqrt(variance), n_label, rest_mean, np.sqrt(rest_variance), n - n_label, equal_var=False
                )
            scores[label], p_values[label], adjusted[label] = finish_test(t, p)
            changes[label] = log2_fold_change(mean, rest_mean)
        return GroupTests(scores, p_values, adjusted, changes, untested)


def normalise(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """log1p of counts scaled to 10,000 per cell, float64; a cell without counts stays empty."""
    values = counts.data.astype(np.float64)
    library = sparse.csr_matrix((values, counts.indices, counts.indptr), counts.shape).sum(1).A1
    library = np.repeat(np.where(library > 0, library, 1), np.diff(counts.indptr))
    # one division of exact numbers: the same proportion of two cells gives the same value, and so a tie of ranks
    logs = np.log1p(values * NORMALISED_LIBRARY / library)
    return sparse.csr_matrix((logs, counts.indices, counts.indptr), counts.shape)


def explain_untested(n_cells: np.ndarray) -> dict[int, str]:
    """Why labels with these numbers of cells (int [labels]) have no test against the rest."""
    total, reasons = int(n_cells.sum()), dict[int, str]()
    for label, n in enumerate(n_cells.tolist()):
        if n < 2:
            reasons[label] = "it has no cell" if n == 0 else "it has one cell, and a variance needs two"
        elif total - n < 2:
            one = "all other labels together have one cell, and a variance needs two"
            reasons[label] = "no cell has another label" if total == n else one
    return reasons


def finish_test(scores: np.ndarray, p_values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, p, adjusted p) [genes]; undefined ones are 0, 1 and as for p of 1, as in scanpy."""
    p_values = np.where(np.isnan(p_values), 1, p_values)
    return np.where(np.isnan(scores), 0, scores), p_values, stats.false_discovery_control(p_values)


def log2_fold_change(mean: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """log2 of the ratio of normalised counts, from means of logarithms in a label and in the rest."""
    return np.log2((np.expm1(mean) + LEAST_FRACTION) / (np.expm1(rest) + LEAST_FRACTION))


def _describe(n: int, sums: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (ddof 1) of n >= 2 numbers."""
    mean, mean_square = sums / n, squares / n
    variance = mean_square - mean**2
    return mean, np.where(variance > LEAST_VARIANCE * mean_square, variance, 0) * n / (n - 1)


@njit(cache=True, nogil=True)
def _add_by_label(
    starts: np.ndarray,
    genes: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    sums: np.ndarray,
    squares: np.ndarray,
) -> None:
    """Add what `normalise` makes of counts (CSR [cells, genes]), and its squares, to the sums of each cell's label,
    float64 [labels, genes]."""
    small = np.empty(SMALL_COUNTS)
    for cell, label in enumerate(labels):
        if label < 0:
            continue
        library = 0.0
        for at in range(starts[cell], starts[cell + 1]):
            library += values[at]
        library = library if library > 0 else 1.0
        for count in range(SMALL_COUNTS):
            small[count] = math.log1p(count * NORMALISED_LIBRARY / library)
        for at in range(starts[cell], starts[cell + 1]):
            value = np.float64(values[at])
            if 0 <= value < SMALL_COUNTS and value == int(value):
                log = small[int(value)]
            else:
                log = math.log1p(value * NORMALISED_LIBRARY / library)
            sums[label, genes[at]] += log
            squares[label, genes[at]] += log**2
