"""scvi-tools' side of benchmarks/time_to_elbo.py: its last line of output is {"seconds": ...}.

usage: python time_to_elbo.py COUNTS.h5ad MODEL EPOCHS SEED

Trains on the cells whose obs column `part` is train, with the model card's settings, minibatches of 128, and the KL
weight rising over the first half of the epochs; saves the last epoch's model. Runs in the peers' environment, imports
nothing of atlasvi.
"""

import json
import logging
import sys
import time
import warnings

import anndata
import numpy as np
import scvi


def main(counts: str, saved: str, epochs: str, seed: str) -> None:
    """Train, save, print the seconds of the training."""
    warnings.filterwarnings("ignore")
    scvi.settings.verbosity = logging.ERROR
    logging.getLogger("lightning").setLevel(logging.ERROR)
    scvi.settings.seed = int(seed)
    cells = anndata.read_h5ad(counts)
    held_out = (cells.obs["part"] == "validation").to_numpy()
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(
        cells, n_hidden=128, n_latent=20, n_layers=3, dropout_rate=0.05, dispersion="gene", gene_likelihood="nb",
        use_batch_norm="none", use_layer_norm="both", encode_covariates=True,
    )  # fmt: skip
    parts = [np.flatnonzero(~held_out), np.flatnonzero(held_out), np.array([], dtype=int)]
    start = time.perf_counter()
    model.train(
        max_epochs=int(epochs), batch_size=128, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, logger=False, datasplitter_kwargs={"external_indexing": parts},
        plan_kwargs={"n_epochs_kl_warmup": max(1, int(epochs) // 2)},
    )  # fmt: skip
    seconds = time.perf_counter() - start
    model.save(saved, overwrite=True)
    print(json.dumps({"seconds": seconds}))


main(*sys.argv[1:])
