"""A small AnnData of three types of cells, and our SCVI trained on it for a moment."""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from atlasvi.engine import SCVI

N_GENES = 40


def make_adata(n_cells: int = 180, seed: int = 0, batches: str = "ab") -> anndata.AnnData:
    """Three types of cells, each with eight genes of its own, in some batches."""
    rng = np.random.default_rng(seed)
    types = rng.integers(3, size=n_cells)
    rates = np.ones((3, N_GENES))
    for kind in range(3):
        rates[kind, 8 * kind : 8 * kind + 8] = 12
    counts = rng.poisson(rates[types] * rng.gamma(5, 0.2, (n_cells, 1))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(["B", "NK", "T"])[types]),
            "batch": pd.Categorical(rng.choice(list(batches), n_cells)),
            "donor": rng.integers(2, size=n_cells),
            "percent_mito": rng.random(n_cells).astype(np.float32),
        },
        index=[f"c{seed}_{k}" for k in range(n_cells)],
    )
    return anndata.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=[f"g{k}" for k in range(N_GENES)]))


def make_model(adata: anndata.AnnData, epochs: int = 3, **options) -> SCVI:
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, **{"n_hidden": 16, "n_latent": 4, "gene_likelihood": "nb", **options})
    model.train(max_epochs=epochs, batch_size=64, plan_kwargs={"n_epochs_kl_warmup": None, "lr": 0.01})
    return model
