"""Latents to search among, drawn block by block: like an atlas's, one Gaussian cloud, or cells like real ones.

What an index finds depends on the data: an atlas has types, states between them and fewer directions than dimensions; a
Gaussian cloud has none of these, so that nearly all cells are equally far from each other, which is the hardest case.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["atlas", "cloud", "onek1k"]
BLOCK_CELLS = 2**16


@dataclass(frozen=True)
class SimulatedLatents:
    """Cells whose means and variances of q(z | x) are drawn when read, a function of seed and block alone.

    kind  atlas   300 types of unequal size, each an ellipsoid of five directions; two cells in five lie between a type
                  and one of its three nearest types, as differentiating cells do
          cloud   a standard normal distribution in all dimensions
          onek1k  cells between real ones: each on the way to one of its 15 nearest, with a little noise
    real  float32 [cells, latent] twice: qzm and qzv of real cells, for onek1k
    """

    kind: Kind
    n_cells: int
    n_latent: int = 20
    seed: int = 0
    real: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def path(self) -> str:
        """A name for messages."""
        return f"{self.n_cells:,} cells ({self.kind})"

    def read_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """qzm and qzv, float32 [at most 65,536, latent], of all cells in turn."""
        for block, start in enumerate(range(0, self.n_cells, BLOCK_CELLS)):
            yield self.draw(min(BLOCK_CELLS, self.n_cells - start), (self.seed, block))

    def draw(self, n: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [n, latent], of n cells of the same distribution."""
        random = np.random.default_rng((*seed, self.n_latent))
        shape = n, self.n_latent
        if self.kind == "cloud":
            qzm = random.standard_normal(shape, np.float32)
        elif self.kind == "onek1k":
            qzm = self._draw_real(random, n)
        else:
            qzm = self._draw_atlas(random, n)
        qzv = 0.03 * np.exp(0.3 * random.standard_normal(shape, np.float32) + 0.3 * random.standard_normal((n, 1)))
        return qzm, qzv.astype(np.float32)

    def _draw_real(self, random: np.random.Generator, n: int) -> np.ndarray:
        assert self.real is not None
        known = self.real[0]
        chosen, other = random.integers(len(known), size=n), random.integers(15, size=n)
        way = random.random((n, 1), np.float32)
        noise = 0.02 * known.std(0) * random.standard_normal((n, known.shape[1]), np.float32)
        return known[chosen] + way * (known[_find_nearest(known)[chosen, other]] - known[chosen]) + noise

    def _draw_atlas(self, random: np.random.Generator, n: int) -> np.ndarray:
        shape = np.random.default_rng(7)  # the atlas is the same for all blocks and seeds
        centres = shape.standard_normal((300, self.n_latent), np.float32)
        directions = 0.3 * shape.standard_normal((300, 5, self.n_latent), np.float32)
        sizes = shape.gamma(0.7, size=300)
        distances = ((centres[:, None] - centres) ** 2).sum(2)
        nearest = np.argsort(distances, axis=1)[:, 1:4]
        cell_type = random.choice(300, n, p=sizes / sizes.sum())
        other = nearest[cell_type, random.integers(3, size=n)]
        between = np.where(random.random(n) < 0.4, random.random(n), 0).astype(np.float32)[:, None]
        spread = random.standard_normal((n, 5), np.float32)
        noise = 0.12 * random.standard_normal((n, self.n_latent), np.float32)
        ellipsoid = np.einsum("nk,nkd->nd", spread, directions[cell_type])
        return (1 - between) * (centres[cell_type] + ellipsoid) + between * centres[other] + noise


_nearest: dict[int, np.ndarray] = {}


def _find_nearest(known: np.ndarray) -> np.ndarray:
    """int64 [cells, 15]: the nearest other cells of each, found once."""
    if id(known) not in _nearest:
        squares = (known**2).sum(1)
        parts = [squares - 2 * part @ known.T for part in np.array_split(known, max(len(known) // 500, 1))]
        _nearest[id(known)] = np.concatenate([np.argsort(part, axis=1)[:, 1:16] for part in parts])
    return _nearest[id(known)]


def read_real(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """qzm and qzv of the cells of an h5ad file that scvi-tools minified."""
    import h5py

    with h5py.File(path) as file:
        names = "scvi_latent_qzm", "scvi_latent_qzv"
        qzm, qzv = (np.asarray(file["obsm"][name], np.float32) for name in names)
    return qzm, qzv
