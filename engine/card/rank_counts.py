"""Calibration of the draws: at which rank among its draws a real count is, added up over cells and genes.

If the model's distributions are right, a real count and its n draws can't be told apart, so the number of draws below
the real count, ties broken at random, is uniform on 0 ... n: this is the histogram of Czado et al. 2009 (Biometrics
65:1254). Instead of breaking ties at random, a count that is tied with some draws is divided evenly over the ranks that
it could have. Only where the count or a draw is above 0 anything is added; this condition is symmetric in the count and
its draws, so it changes nothing for a model that is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numba import njit
from scipy import sparse

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import Calibration, CalibrationPoint


@dataclass
class RankCounts:
    """Sums over cells, of n draws.

    table     int64 [n + 1, n + 1]: counts by the number of draws below them, and that of draws equal to them
    by_cell   float64 [levels, 3]: sums over cells of (inside)**2, inside x compared and compared**2, where `inside` is
              the number of a cell's counts in the interval of this level and `compared` that of all its counts
    """

    table: np.ndarray
    by_cell: np.ndarray

    @classmethod
    def empty(cls, n_draws: int) -> Self:
        """Of no cells."""
        return cls(np.zeros((n_draws + 1, n_draws + 1), np.int64), np.zeros((n_draws // 2, 3)))

    def add(self, real: sparse.csr_matrix, draws: Sequence[sparse.csr_matrix]) -> None:
        """Add cells: their counts and each draw of them, [cells, genes] each."""
        sources = [real, *draws]
        starts = np.cumsum([0, *(each.nnz for each in sources)])
        _add_ranks(
            np.stack([each.indptr.astype(np.int64) + start for each, start in zip(sources, starts)]),
            np.concatenate([each.indices for each in sources]).astype(np.int32, copy=False),
            np.concatenate([each.data for each in sources]).astype(np.float32, copy=False),
            real.shape[1],
            _weigh_levels(len(draws)),
            self.table,
            self.by_cell,
        )

    def __add__(self, other: "RankCounts") -> "RankCounts":
        return RankCounts(self.table + other.table, self.by_cell + other.by_cell)

    def calibrate(self) -> Calibration | None:
        """None with fewer than two draws, of which no interval has an inside, or without counts."""
        n, n_counts = len(self.table) - 1, int(self.table.sum())
        if n < 2 or not n_counts:
            return None
        histogram = np.zeros(n + 1)
        for below in range(n + 1):
            for ties in range(n + 1 - below):
                histogram[below : below + ties + 1] += self.table[below, ties] / (ties + 1)
        points = []
        for level, weights in enumerate(_weigh_levels(n)):
            observed = float((weights * self.table).sum()) / n_counts
            inside, both, compared = self.by_cell[level]  # the error of a ratio of sums over cells
            variance = max(inside - 2 * observed * both + observed**2 * compared, 0)
            expected = (n + 1 - 2 * (level + 1)) / (n + 1)
            points.append(CalibrationPoint(expected, Estimate(observed, float(np.sqrt(variance)) / n_counts)))
        differences = [abs(point.observed.value - point.expected) for point in points]
        error = float(np.sqrt(sum(point.observed.error**2 for point in points))) / len(points)
        points.sort(key=lambda point: point.expected)
        shares = tuple((histogram / n_counts).tolist())
        return Calibration(tuple(points), shares, Estimate(float(np.mean(differences)), error), n_counts)


def _weigh_levels(n_draws: int) -> np.ndarray:
    """float64 [levels, n + 1, n + 1]: the share of the ranks of a count (by draws below it, and equal to it) that are
    in the interval from the smallest but k to the largest but k draw, k = 0, 1, ..."""
    weights = np.zeros((n_draws // 2, n_draws + 1, n_draws + 1))
    for level in range(n_draws // 2):
        for below in range(n_draws + 1):
            for ties in range(n_draws + 1 - below):
                inside = min(below + ties, n_draws - level - 1) - max(below, level + 1) + 1
                weights[level, below, ties] = max(inside, 0) / (ties + 1)
    return weights


@njit(cache=True, nogil=True)
def _add_ranks(
    starts: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    n_genes: int,
    weights: np.ndarray,
    table: np.ndarray,
    by_cell: np.ndarray,
) -> None:
    """starts: int64 [1 + draws, cells + 1], where the entries of each cell in each source begin."""
    n_draws, n_levels = starts.shape[0] - 1, weights.shape[0]
    real, below = np.zeros(n_genes, np.float32), np.zeros(n_genes, np.int32)
    ties, drawn = np.zeros(n_genes, np.int32), np.zeros(n_genes, np.int32)
    touched, inside = np.empty(n_genes, np.int32), np.zeros(n_levels)
    for cell in range(starts.shape[1] - 1):
        n_touched = 0
        for at in range(starts[0, cell], starts[0, cell + 1]):
            if values[at] > 0:
                real[indices[at]] = values[at]
                touched[n_touched] = indices[at]
                n_touched += 1
        for draw in range(1, n_draws + 1):
            for at in range(starts[draw, cell], starts[draw, cell + 1]):
                gene, value = indices[at], values[at]
                if value <= 0:
                    continue
                if real[gene] == 0 and drawn[gene] == 0:
                    touched[n_touched] = gene
                    n_touched += 1
                drawn[gene] += 1
                if value < real[gene]:
                    below[gene] += 1
                elif value == real[gene]:
                    ties[gene] += 1
        inside[:] = 0
        for k in range(n_touched):
            gene = touched[k]
            n_below, n_ties = below[gene], ties[gene]
            if real[gene] > 0:
                n_below += n_draws - drawn[gene]
            else:
                n_ties += n_draws - drawn[gene]
            table[n_below, n_ties] += 1
            for level in range(n_levels):
                inside[level] += weights[level, n_below, n_ties]
            real[gene], below[gene], ties[gene], drawn[gene] = 0, 0, 0, 0
        for level in range(n_levels):
            by_cell[level, 0] += inside[level] ** 2
            by_cell[level, 1] += inside[level] * n_touched
            by_cell[level, 2] += n_touched**2
