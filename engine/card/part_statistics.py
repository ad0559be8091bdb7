"""All statistics of one part of the cells (training, validation or test), real and drawn, added up in one pass.

Memory: a few numbers of 4 bytes per cell and draw, and two of 8 bytes per label, gene and tested draw; no counts are
kept.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from atlasvi.engine.card.agreement import Agreement, compare
from atlasvi.engine.card.cell_statistics import CellStatistics, cell_statistics
from atlasvi.engine.card.draw_errors import Estimate, jackknife, mean_of_draws
from atlasvi.engine.card.gene_moments import GeneMoments
from atlasvi.engine.card.label_moments import LabelMoments
from atlasvi.engine.card.marker_agreement import MarkerAgreement, marker_agreement

Figures = dict[str, Estimate]
"""Figures by name, each with its standard error over draws."""


class PartStatistics:
    """The statistics of one part of the cells; source 0 is the real counts, source k the k-th draw.

    n_tested  draws of which differential expression is computed, for its standard error (the hub takes one)
    """

    def __init__(self, n_genes: int, n_draws: int, n_labels: int = 0, n_tested: int = 1) -> None:
        self.n_draws, self.n_tested = n_draws, min(n_tested, n_draws)
        self.cells: list[list[CellStatistics]] = [[] for _ in range(1 + n_draws)]
        self.genes = [GeneMoments.empty(n_genes) for _ in range(1 + n_draws)]
        self.labels = [LabelMoments.empty(n_labels, n_genes) for _ in range(1 + self.n_tested if n_labels else 0)]

    def add(
        self, real: sparse.csr_matrix, draws: Sequence[sparse.csr_matrix], labels: np.ndarray | None = None
    ) -> None:
        """Add cells: their counts [cells, genes], each draw of them, and their labels (int [cells], below 0: none)."""
        for k, counts in enumerate([real, *draws]):
            self.cells[k].append(cell_statistics(counts))
            self.genes[k].add(counts)
            if k < len(self.labels) and labels is not None:
                self.labels[k].add(counts, labels)

    def extend(self, other: "PartStatistics") -> None:
        """Add the cells of another pass (of another rank, say) with the same genes, draws and labels."""
        for k in range(1 + self.n_draws):
            self.cells[k] += other.cells[k]
            self.genes[k] += other.genes[k]
        self.labels = [mine + theirs for mine, theirs in zip(self.labels, other.labels)]

    @property
    def n_cells(self) -> int:
        """Number of cells added."""
        return self.genes[0].n_cells

    def cell_figures(self, name: str) -> Figures:
        """Agreement over cells of one of the fields of `CellStatistics`, averaged over draws, with the real values.

        As on the hub, where `name` is 'variation'. A cell whose counts are all 0 has no variation: it counts as 0, and
        a draw of a cell in which all counts are 0 is left out of the average over draws.
        """
        sources = [
            np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, np.float32)]) for parts in self.cells
        ]
        return _compare_draws(np.array(sources[1:]), sources[0])

    def gene_figures(self, name: str) -> Figures:
        """Agreement over genes of 'variation' or 'zero_fraction', averaged over draws, with the real values.

        A gene without real counts, or never drawn, has no variation: it counts as 0 (see `n_genes_without_counts`).
        """
        real, *draws = (getattr(moments, name) for moments in self.genes)
        return _compare_draws(np.array(draws), real)

    def n_genes_without_counts(self) -> tuple[int, int]:
        """(genes without real counts, genes that are never drawn)."""
        drawn = sum(moments.sums for moments in self.genes[1:])
        return int((self.genes[0].sums == 0).sum()), int((np.asarray(drawn) == 0).sum())

    def marker_figures(self) -> tuple[dict[int, Figures], dict[int, str]]:
        """By label (its code): `MarkerAgreement` of Welch's t-test in draws with that in real counts, means over the
        tested draws; and why a label has none."""
        if not self.labels:
            return {}, {}
        real, *draws = (moments.welch_tests() for moments in self.labels)
        figures = {}
        for label in range(len(self.labels[0].n_cells)):
            if label not in real.untested:
                found = [marker_agreement(tests, real, label) for tests in draws]
                columns = zip(MarkerAgreement._fields, zip(*found))
                figures[label] = {name: mean_of_draws(values) for name, values in columns}
        return figures, real.untested


def _compare_draws(draws: np.ndarray, real: np.ndarray) -> Figures:
    real = np.nan_to_num(real.astype(np.float64))
    return dict(zip(Agreement._fields, jackknife(lambda mean: compare(mean, real), draws)))
