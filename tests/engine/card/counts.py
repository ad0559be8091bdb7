"""Small counts of labelled cells for the tests of the card's statistics."""

import numpy as np
from scipy import sparse


def make_counts(n_cells: int = 60, n_genes: int = 30, seed: int = 0) -> sparse.csr_matrix:
    """Sparse counts, with an empty cell (the first) and a gene without counts (the last)."""
    random = np.random.default_rng(seed)
    dense = random.poisson(random.gamma(0.5, 3, n_genes) * random.gamma(2, 0.5, (n_cells, 1)))
    dense[0], dense[:, -1] = 0, 0
    return sparse.csr_matrix(dense.astype(np.float32))
