"""Stores of cells with coordinates: in memory, for tests of tiles; and a minified store's copy with coordinates."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from atlasvi.engine.minified.embedding import writing_embedding
from atlasvi.engine.minified.minified_store import MinifiedStore


class EmbeddedCells:
    """What tiles and their columns ask of a minified store."""

    def __init__(self, folder: Path, points: np.ndarray, obs: pd.DataFrame | None = None) -> None:
        self.path, self.n_cells = str(folder / "atlas.mini"), len(points)
        self.points = points.astype(np.float32)
        self.obs = pd.DataFrame(index=[f"cell {k}" for k in range(len(points))]) if obs is None else obs

    @property
    def obs_columns(self) -> list[str]:
        return list(self.obs.columns)

    def read_embedding(self, rows: slice | np.ndarray | None = None) -> np.ndarray:
        return self.points[slice(None) if rows is None else rows]

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        return self.obs[name].iloc[start:stop]

    def take_column(self, name: str, cells: np.ndarray) -> pd.Series:
        return self.obs[name].iloc[cells]

    def take_names(self, cells: np.ndarray) -> pd.Index:
        return self.obs.index[cells]


def draw_points(n_cells: int, seed: int = 0) -> np.ndarray:
    """float32 [cells, 2]: three clouds, the last with few cells, in random order."""
    random = np.random.default_rng(seed)
    centres = np.array([[0, 0], [9, 2], [4, -30]])
    cloud = random.choice(3, n_cells, p=[0.6, 0.39, 0.01])
    return (centres[cloud] + random.normal(size=(n_cells, 2))).astype(np.float32)


def copy_with_points(mini: Path, folder: Path) -> MinifiedStore:
    """A copy of a minified store in a folder, with the coordinates of `draw_points`."""
    copied = shutil.copytree(mini, folder / mini.name)
    opened = MinifiedStore(copied)
    with writing_embedding(opened, {"method": "test"}) as append:
        append(draw_points(opened.n_cells))
    return MinifiedStore(copied)
