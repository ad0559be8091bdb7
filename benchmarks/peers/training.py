"""Cells per second of scvi-tools training on the CPU with the model card's settings, data in memory.

usage: python training.py GENES CELLS BATCH_SIZE DENSITY [compile]      e.g. 20000 8192 1024 0.05
"""

import logging
import resource
import sys
import time
import warnings

import anndata as ad
import numpy as np
import scipy.sparse as sp
import scvi

warnings.filterwarnings("ignore")
scvi.settings.verbosity = logging.ERROR
logging.getLogger("lightning").setLevel(logging.ERROR)

genes, cells, batch_size, density = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
plan = {"plan_kwargs": {"compile": True}} if sys.argv[5:] == ["compile"] else {}
rng = np.random.default_rng(0)
counts = sp.random(
    cells, genes, density, format="csr", dtype=np.float32, random_state=0,
    data_rvs=lambda n: rng.geometric(0.5, n).astype(np.float32),
)  # fmt: skip
adata = ad.AnnData(counts)
adata.obs["batch"] = rng.integers(0, 12, cells).astype(str)
scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
model = scvi.model.SCVI(
    adata, n_hidden=128, n_latent=20, n_layers=3, dropout_rate=0.05, dispersion="gene", gene_likelihood="nb",
    use_batch_norm="none", use_layer_norm="both", encode_covariates=True,
)  # fmt: skip
for run in ("warm-up", "measured"):
    start = time.perf_counter()
    model.train(
        max_epochs=1, train_size=1.0, batch_size=batch_size, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, logger=False, **plan,
    )  # fmt: skip
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    rate = cells / (time.perf_counter() - start)
    print(f"{run}: {rate:.0f} cells/s at {genes} genes, batch {batch_size}, {rss:.2f} GB", flush=True)
