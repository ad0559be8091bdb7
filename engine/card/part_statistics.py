"""All sums of one part of the cells (training, validation or test), over real counts and draws, added up in one pass.

Memory: three numbers of 8 bytes per gene and draw, and two per label, gene and tested draw; nothing per cell.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from atlasvi.engine.card.agreement import Agreement, compare
from atlasvi.engine.card.draw_errors import Estimate, jackknife, mean_of_draws
from atlasvi.engine.card.gene_moments import GeneMoments
from atlasvi.engine.card.label_moments import LabelMoments
from atlasvi.engine.card.marker_agreement import MarkerAgreement, marker_agreement
from atlasvi.engine.card.model_card import Figures
from atlasvi.engine.card.rank_counts import RankCounts


class PartStatistics:
    """The sums of one part of the cells; source 0 is the real counts, source k the k-th draw.

    n_tested  draws of which differential expression is computed, for its standard error (the hub takes one)
    losses    float64 [1 + draws]: sums over cells of KL, and of the reconstruction loss at each draw of z; nats
    """

    def __init__(self, n_genes: int, n_draws: int, n_labels: int = 0, n_tested: int = 1) -> None:
        self.n_draws, self.n_tested = n_draws, min(n_tested, n_draws)
        self.genes = [GeneMoments.empty(n_genes) for _ in range(1 + n_draws)]
        self.labels = [LabelMoments.empty(n_labels, n_genes) for _ in range(1 + self.n_tested if n_labels else 0)]
        self.ranks = RankCounts.empty(n_draws)
        self.losses = np.zeros(1 + n_draws)

    def add(
        self, real: sparse.csr_matrix, draws: Sequence[sparse.csr_matrix], labels: np.ndarray | None = None
    ) -> None:
        """Add cells: their counts [cells, genes], each draw of them, and their labels (int [cells], below 0: none)."""
        for k, counts in enumerate([real, *draws]):
            self.genes[k].add(counts)
            if k < len(self.labels) and labels is not None:
                self.labels[k].add(counts, labels)
        self.ranks.add(real, draws)

    def add_losses(self, kl: np.ndarray, reconstruction: np.ndarray) -> None:
        """Add the losses of cells: float [cells], and float [draws, cells]."""
        self.losses += [kl.sum(dtype=np.float64), *reconstruction.sum(1, dtype=np.float64)]

    def extend(self, other: "PartStatistics") -> None:
        """Add the cells of another pass (of another rank, say) with the same genes, draws and labels."""
        self.genes = [mine + theirs for mine, theirs in zip(self.genes, other.genes)]
        self.labels = [mine + theirs for mine, theirs in zip(self.labels, other.labels)]
        self.ranks, self.losses = self.ranks + other.ranks, self.losses + other.losses

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All sums, for a file."""
        arrays = {
            "n_cells": np.array([self.n_cells]),
            "genes": np.array([[each.sums, each.squares, each.expressed] for each in self.genes]),
            "rank_table": self.ranks.table,
            "rank_cells": self.ranks.by_cell,
            "losses": self.losses,
        }
        if self.labels:
            arrays["label_cells"] = np.array([each.n_cells for each in self.labels])
            arrays["labels"] = np.array([[each.sums, each.squares] for each in self.labels])
        return arrays

    def add_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add what `to_arrays` gave of other cells."""
        n_cells = int(arrays["n_cells"][0])
        self.genes = [mine + GeneMoments(n_cells, *sums) for mine, sums in zip(self.genes, arrays["genes"])]
        if self.labels:
            found = zip(self.labels, arrays["label_cells"], arrays["labels"])
            self.labels = [mine + LabelMoments(n, *sums) for mine, n, sums in found]
        self.ranks += RankCounts(arrays["rank_table"], arrays["rank_cells"])
        self.losses = self.losses + arrays["losses"]

    @property
    def n_cells(self) -> int:
        """Number of cells added."""
        return self.genes[0].n_cells

    def gene_values(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """'variation' or 'zero_fraction' of real counts, float64 [genes], and of each draw [draws, genes]."""
        real, *draws = (getattr(moments, name) for moments in self.genes)
        return np.nan_to_num(real), np.array(draws)

    def gene_figures(self, name: str) -> Figures:
        """Agreement over genes of 'variation' or 'zero_fraction', averaged over draws, with the real values.

        A gene without real counts, or never drawn, has no variation: it counts as 0 (see `n_genes_without_counts`).
        """
        real, draws = self.gene_values(name)
        return dict(zip(Agreement._fields, jackknife(lambda mean: compare(mean, real), draws)))

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

    def loss_figures(self) -> Figures:
        """'elbo', 'reconstruction_loss', 'kl': means over cells, over draws of z; nats per cell."""
        if not self.n_cells:
            return {}
        kl, *reconstruction = self.losses / self.n_cells
        mean = mean_of_draws(reconstruction)
        return {
            "elbo": Estimate(-(mean.value + float(kl)), mean.error),
            "reconstruction_loss": mean,
            "kl": Estimate(float(kl), 0.0),  # computed exactly, not drawn
        }
