"""How well neighbours in a latent space tell a cell's type, and how well they mix batches."""

import numpy as np

from atlasvi.engine.card.integration import count_votes

NEIGHBOURS = 15
CELLS_AT_ONCE = 500


def find_neighbours(asked: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """int64 [asked, 15]: indices of the nearest reference cells of each asked one, by Euclidean distance of latents."""
    parts = []
    for start in range(0, len(asked), CELLS_AT_ONCE):
        distances = (reference**2).sum(1) - 2 * asked[start : start + CELLS_AT_ONCE] @ reference.T
        parts.append(np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    return np.concatenate(parts)


def measure_right(near: np.ndarray, types: np.ndarray) -> float:
    """The share of cells whose type most neighbours have; near: types of the neighbours, types: of the cells."""
    n = int(max(near.max(), types.max())) + 1
    return float((count_votes(near, n).argmax(1) == types).mean())


def measure_mixing(near: np.ndarray, n_batches: int) -> float:
    """Mean entropy of the batches of a cell's neighbours, as a share of the largest possible one."""
    shares = count_votes(near, n_batches) / near.shape[1]
    entropies = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
    return float(entropies.mean() / np.log(n_batches))
