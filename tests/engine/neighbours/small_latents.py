"""Latents in memory that an index can be built of, and the plain search that all others must agree with."""

from dataclasses import dataclass

import numpy as np


@dataclass
class SmallLatents:
    """Means and variances of q(z | x), float32 [cells, latent] each, with the interface of a minified store."""

    qzm: np.ndarray
    qzv: np.ndarray
    path: str = "cells"

    @property
    def n_cells(self) -> int:
        return len(self.qzm)

    @property
    def n_latent(self) -> int:
        return self.qzm.shape[1]

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self.qzm[start:stop], self.qzv[start:stop]


def make_latents(n_cells: int, n_latent: int = 5, seed: int = 0, path: str = "cells") -> SmallLatents:
    """Ten clouds of unequal width."""
    random = np.random.default_rng(seed)
    centres = 3 * random.standard_normal((10, n_latent))
    kinds = random.integers(10, size=n_cells)
    qzm = centres[kinds] + random.random((10, 1))[kinds] * random.standard_normal((n_cells, n_latent))
    return SmallLatents(qzm.astype(np.float32), random.gamma(2, 0.1, (n_cells, n_latent)).astype(np.float32), path)


def search_plainly(
    points: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and cells of all pairs in float64, sorted by distance and index."""
    squared = ((queries[:, None].astype(float) - points) ** 2).sum(2)
    squared[:, ~chosen] = np.inf
    squared[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(squared, order, 1)
    return nearest, np.where(np.isinf(nearest), -1, order)
