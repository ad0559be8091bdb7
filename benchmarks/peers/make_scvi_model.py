"""Train a small scvi-tools model on a real matrix and save what another implementation must reproduce.

usage: python make_scvi_model.py COUNTS.h5ad BATCH_KEY LABELS_KEY OUT_DIR [seed|default]

`seed` uses the settings of the Tabula Sapiens model card (NB, layer norm, 3 layers, 20 latent
dimensions); `default` uses ZINB, batch norm, per-batch dispersion, and one categorical and one
continuous covariate where the file has them. OUT_DIR gets the model directory as scvi-tools
writes it (`model.pt`), a minified AnnData (`minified.h5ad`) and `expected.npz`:

rows              int64 [n]            the cells evaluated, in order
qzm, qzv          float32 [n, latent]  posterior mean and VARIANCE of z
px_rate_at_qzm    float32 [n, genes]   decoder mean when z is exactly qzm, at the observed library size
nll_at_qzm        float32 [n]          negative log-likelihood (nats) per cell summed over genes, z = qzm
kl                float32 [n]          KL(q(z|x) || N(0, I)) per cell, nats
library           float32 [n]          observed library size, total counts per cell
"""

import logging
import sys
import warnings

import anndata as ad
import numpy as np
import scvi
import torch

warnings.filterwarnings("ignore")
scvi.settings.verbosity = logging.ERROR
logging.getLogger("lightning").setLevel(logging.ERROR)


def main(counts, batch_key, labels_key, out, flavour="seed"):
    """Train, save, evaluate, minify; see the module."""
    scvi.settings.seed = 0
    adata = ad.read_h5ad(counts)
    setup = {"batch_key": batch_key, "labels_key": labels_key}
    if flavour == "seed":
        kwargs = dict(
            n_hidden=128, n_latent=20, n_layers=3, dropout_rate=0.05, dispersion="gene", gene_likelihood="nb",
            use_batch_norm="none", use_layer_norm="both", encode_covariates=True,
        )  # fmt: skip
    else:
        kwargs = dict(n_hidden=64, n_latent=10, n_layers=2, dispersion="gene-batch", gene_likelihood="zinb")
        if "sex" in adata.obs:
            setup |= {"categorical_covariate_keys": ["sex"], "continuous_covariate_keys": ["age"]}
    scvi.model.SCVI.setup_anndata(adata, **setup)
    model = scvi.model.SCVI(adata, **kwargs)
    model.train(
        max_epochs=10, train_size=0.8, plan_kwargs={"n_epochs_kl_warmup": 10}, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, logger=False,
    )  # fmt: skip
    model.save(out, overwrite=True)

    rows = np.arange(0, adata.n_obs, max(1, adata.n_obs // 64))[:64]
    module = model.module.eval()
    (tensors,) = list(model._make_data_loader(adata, indices=rows, batch_size=len(rows)))
    with torch.no_grad():
        inference = module.inference(**module._get_inference_input(tensors))
        qz = inference["qz"]
        inference["z"] = qz.loc
        generative = module.generative(**module._get_generative_input(tensors, inference))
        px = generative["px"]
        nll = -px.log_prob(tensors["X"]).sum(-1)
        kl = torch.distributions.kl_divergence(qz, generative["pz"]).sum(-1)
    np.savez_compressed(
        f"{out}/expected.npz", rows=rows, qzm=qz.loc.numpy(), qzv=qz.scale.square().numpy(),
        px_rate_at_qzm=px.mu.numpy(), nll_at_qzm=nll.numpy(), kl=kl.numpy(),
        library=tensors["X"].sum(1).numpy(),
    )  # fmt: skip
    qzm, qzv = model.get_latent_representation(return_dist=True)
    adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = qzm, qzv
    model.minify_adata(use_latent_qzm_key="X_latent_qzm", use_latent_qzv_key="X_latent_qzv")
    model.adata.write_h5ad(f"{out}/minified.h5ad", compression="gzip")
    print(out, "mean nll", nll.mean().item(), "mean kl", kl.mean().item())


main(*sys.argv[1:])
