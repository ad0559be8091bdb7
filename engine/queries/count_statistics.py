"""Statistics of the counts of groups of cells: sums from one pass, which can be added for any union of the groups."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.question_cells import CountedCells
from atlasvi.loaders.cells.coded_columns import count_codes

PASS_CELLS = 2**13
NORMALISED_LIBRARY = 1e4


class GeneMeans(NamedTuple):
    """Means over cells, float64 [genes]: of the counts, of counts > 0, of the counts scaled to 10,000 per cell."""

    counts: np.ndarray
    detected: np.ndarray
    normalised: np.ndarray


@dataclass
class CountStatistics:
    """Sums over the cells of each label: n_cells int64 [labels], sums float64 [3, labels, genes] (see `GeneMeans`)."""

    n_cells: np.ndarray
    sums: np.ndarray

    def mean(self, labels: np.ndarray) -> GeneMeans:
        """Means over the cells with these labels (bool [labels])."""
        return GeneMeans(*(self.sums[:, labels].sum(1) / max(int(self.n_cells[labels].sum()), 1)))


def count_statistics(model: VAE, cells: CountedCells, labels: np.ndarray, n_labels: int) -> CountStatistics:
    """Sums over the cells of each label (int [cells], below n_labels), in one pass; memory is that of the result."""
    sums = np.zeros((3, n_labels, model.settings.n_genes))
    for batch in cells.read_batches(model, None, PASS_CELLS):
        batch = batch.to("cpu")
        library = batch.library.numpy().astype(np.float64)
        shape = (len(batch), model.settings.n_genes)
        counts = sparse.csr_matrix(
            (batch.counts.numpy().astype(np.float64), batch.indices.numpy().astype(np.int32), batch.indptr.numpy()),
            shape,
        )
        detected = sparse.csr_matrix((np.ones(counts.nnz), counts.indices, counts.indptr), shape)
        here = labels[batch.rows.numpy()]
        present, place = np.unique(here, return_inverse=True)

        def add_up(weights: np.ndarray, place: np.ndarray = place) -> sparse.csr_matrix:
            n = len(place)
            return sparse.csr_matrix((weights, (place, np.arange(n))), (int(place.max()) + 1, n))

        ones, scale = np.ones(len(batch)), NORMALISED_LIBRARY / np.where(library > 0, library, 1)
        for total, weights, matrix in ((sums[0], ones, counts), (sums[1], ones, detected), (sums[2], scale, counts)):
            total[present] += (add_up(weights) @ matrix).toarray()
    return CountStatistics(count_codes(labels, n_labels), sums)
