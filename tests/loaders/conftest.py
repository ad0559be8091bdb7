"""Small count files, made in place."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse


def make_counts(n_cells: int, n_genes: int, seed: int = 0, density: float = 0.2, largest: int = 9) -> sparse.csr_matrix:
    """Random counts, at least one in each cell."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, largest + 1, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < density)
    dense[np.arange(n_cells), rng.integers(0, n_genes, n_cells)] = largest
    return sparse.csr_matrix(dense.astype(np.float32))


def write_counts(
    folder: Path, name: str, counts: sparse.csr_matrix, genes: list[str] | None = None, obs: pd.DataFrame | None = None
) -> Path:
    """Write an h5ad of the given matrix with `batch`, `n` and `note` in obs into a folder; returns its path."""
    n_cells, n_genes = counts.shape
    if obs is None:
        obs = pd.DataFrame(
            {
                "batch": pd.Categorical([f"b{k % 3}" for k in range(n_cells)]),
                "n": np.arange(n_cells),
                "note": [f"note {k % 5}" for k in range(n_cells)],
            },
            index=[f"{name}_{k}" for k in range(n_cells)],
        )
    var = pd.DataFrame(index=genes or [f"g{k}" for k in range(n_genes)])
    path = folder / f"{name}.h5ad"
    anndata.AnnData(counts, obs=obs, var=var).write_h5ad(path)
    return path


@pytest.fixture
def write_h5ad(tmp_path: Path) -> Callable[..., Path]:
    """`write_counts` into the folder of the test."""
    return partial(write_counts, tmp_path)
