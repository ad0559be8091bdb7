"""120 cells of two batches, with labels of several kinds."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

N_CELLS, N_GENES = 120, 20


def make_adata(seed: int = 0) -> anndata.AnnData:
    """120 cells of two batches; labels in several columns."""
    random = np.random.default_rng(seed)
    types = np.arange(N_CELLS) % 3
    counts = random.poisson(random.gamma(1, 2, (3, N_GENES))[types] + 0.2).astype(np.float32)
    obs = pd.DataFrame(
        {
            "batch": np.array(["a", "b"])[np.arange(N_CELLS) // 2 % 2],
            "type": np.array(["B", "T", "NK"])[types],
            "one": "only",
            "rare": np.where(np.arange(N_CELLS) < 2, "two cells", np.where(np.arange(N_CELLS) == 2, "lonely", "rest")),
            "split": np.where(np.arange(N_CELLS) < 90, "train", "test"),
        },
        index=[f"cell{k}" for k in range(N_CELLS)],
    )
    return anndata.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=[f"g{k}" for k in range(N_GENES)]))
