"""Of each gene: sums over cells that can be added; from them coefficient of variation and zero fraction."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import sparse

from atlasvi.engine.card.cell_statistics import add_counts, coefficient_of_variation


@dataclass
class GeneMoments:
    """Sums over n_cells cells, float64 [genes]: of the counts, of their squares, of counts above 0."""

    n_cells: int
    sums: np.ndarray
    squares: np.ndarray
    expressed: np.ndarray

    @classmethod
    def empty(cls, n_genes: int) -> Self:
        """Of no cells."""
        return cls(0, *np.zeros((3, n_genes)))

    def add(self, counts: sparse.csr_matrix) -> None:
        """Add the cells (rows) of a matrix of counts."""
        add_counts(counts.indices, counts.data, self.sums, self.squares, self.expressed)
        self.n_cells += counts.shape[0]

    def __add__(self, other: "GeneMoments") -> "GeneMoments":
        return GeneMoments(
            self.n_cells + other.n_cells,
            self.sums + other.sums,
            self.squares + other.squares,
            self.expressed + other.expressed,
        )

    @property
    def variation(self) -> np.ndarray:
        """Standard deviation / mean over cells (ddof 0), float64 [genes]; NaN for a gene without counts."""
        return coefficient_of_variation(self.sums, self.squares, self.n_cells)

    @property
    def zero_fraction(self) -> np.ndarray:
        """The fraction of cells whose count is 0, float64 [genes]; NaN without cells."""
        return 1 - self.expressed / self.n_cells if self.n_cells else np.full(len(self.sums), np.nan)
