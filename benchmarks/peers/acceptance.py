"""scvi-tools' held-out reconstruction loss: python acceptance.py COUNTS.h5ad BATCH_KEY SEED EPOCHS -> nats per cell.

As benchmarks/acceptance.py trains: every fifth row is held out, the model card's settings, minibatches of 128, KL
warm-up over all epochs, the last epoch's weights. Runs in the peers' environment, imports nothing of atlasvi.
"""

import logging
import sys
import warnings

import anndata
import numpy as np
import scvi


def main(counts: str, batch_key: str, seed: str, epochs: str) -> None:
    """Train on four fifths, print the loss of the rest."""
    warnings.filterwarnings("ignore")
    scvi.settings.verbosity = logging.ERROR
    logging.getLogger("lightning").setLevel(logging.ERROR)
    scvi.settings.seed = int(seed)
    cells = anndata.read_h5ad(counts)
    held_out = np.arange(cells.n_obs) % 5 == 0
    scvi.model.SCVI.setup_anndata(cells, batch_key=batch_key)
    model = scvi.model.SCVI(
        cells, n_hidden=128, n_latent=20, n_layers=3, dropout_rate=0.05, dispersion="gene", gene_likelihood="nb",
        use_batch_norm="none", use_layer_norm="both", encode_covariates=True,
    )  # fmt: skip
    parts = [np.flatnonzero(~held_out), np.flatnonzero(held_out), np.array([], dtype=int)]
    model.train(
        max_epochs=int(epochs), batch_size=128, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, logger=False, datasplitter_kwargs={"external_indexing": parts},
        plan_kwargs={"n_epochs_kl_warmup": int(epochs)},
    )  # fmt: skip
    loss = model.get_reconstruction_error(indices=np.flatnonzero(held_out))
    loss = loss["reconstruction_loss"] if isinstance(loss, dict) else loss
    print(abs(float(loss)))


main(*sys.argv[1:])
