"""Correlations of some genes with all genes, from sums over cells that are added up slice by slice."""

import numpy as np
import torch
from torch import Tensor


class CrossProducts:
    """Sums, squares and products of the values of genes; memory is [chosen genes, genes], whatever the number of cells.

    columns  the genes that are correlated with all genes: int64 indices, or a slice
    shift    float64 [genes], near the mean of each gene: what is subtracted from values, so that their sums keep their
             precision; None: the mean of the first values
    """

    def __init__(self, columns: np.ndarray | slice, shift: np.ndarray | None = None) -> None:
        self._columns = columns
        self._shift = None if shift is None else torch.from_numpy(shift)
        self._n, self._sums, self._squares, self._products = 0, Tensor(), Tensor(), Tensor()

    def add(self, values: Tensor) -> None:
        """Add the values of some cells [cells, genes]."""
        values = values.double()
        if self._n == 0:
            shift = self._shift = values.mean(0) if self._shift is None else self._shift.to(values)
            self._sums, self._squares = torch.zeros_like(shift), torch.zeros_like(shift)
            self._products = torch.zeros(len(shift[self._columns]), len(shift), dtype=shift.dtype, device=shift.device)
        assert self._shift is not None
        centred = values - self._shift
        self._n += len(values)
        self._sums += centred.sum(0)
        self._squares += centred.square().sum(0)
        self._products.addmm_(centred[:, self._columns].T, centred)

    def correlate(self) -> np.ndarray:
        """Pearson's correlations float64 [chosen genes, genes]; NaN for a gene that does not vary."""
        mean = self._sums / self._n
        spread = (self._squares - self._n * mean.square()).clamp(min=0).sqrt()
        # What is left of a constant gene is the rounding of its sums, which is no variation.
        spread[spread <= 1e-12 * self._squares.sqrt()] = 0
        products = self._products - self._n * torch.outer(mean[self._columns], mean)
        return (products / torch.outer(spread[self._columns], spread)).clamp(-1, 1).cpu().numpy()
