"""Write small models as scvi-tools saves them, with what they compute, to models/NAME. Arguments: names from MODELS.

Run it where scvi-tools is installed: `current ...` with 1.5.1, `old` with an older version, whose number is appended.
expected.npz: qzm, qzv, nll at z = qzm (library at the mean of its posterior, if it has one), mean, all of all cells.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from cases import KEYS, make_cells

warnings.filterwarnings("ignore")
scvi.settings.verbosity = logging.ERROR
logging.getLogger("lightning").setLevel(logging.ERROR)
COLUMNS = ("batch", "labels", "donor", "same", "sex", "age", "score", "factor")
ALL = KEYS["all"]
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "old": (ALL, {"n_layers": 2, "dispersion": "gene-batch"}),
    "plain": ({}, {}),
    "latent": (
        ALL,
        {
            "use_observed_lib_size": False,
            "latent_distribution": "ln",
            "dispersion": "gene-label",
            "n_layers": 3,
            "encode_covariates": True,
            "use_layer_norm": "encoder",
        },
    ),
    "factor": (
        {"batch_key": "sex", "layer": "counts", "size_factor_key": "factor"},
        {"gene_likelihood": "poisson", "n_layers": 2, "deeply_inject_covariates": False, "log_variational": False},
    ),
    "embedded": (
        KEYS["embedded"],
        {
            "batch_representation": "embedding",
            "batch_embedding_kwargs": {"embedding_dim": 3},
            "dispersion": "gene-cell",
            "gene_likelihood": "normal",
            "encode_covariates": True,
        },
    ),
}


def make_data() -> anndata.AnnData:
    cells = make_cells()
    obs = pd.DataFrame({name: cells[name] for name in COLUMNS}, index=[f"c{k}" for k in range(len(cells["counts"]))])
    var = pd.DataFrame(index=[f"g{k}" for k in range(cells["counts"].shape[1])])
    return anndata.AnnData(cells["counts"].copy(), obs, var, layers={"counts": cells["counts"].copy()})


def compute(model: Any, data: anndata.AnnData) -> dict[str, np.ndarray]:
    """What the module computes at the posterior mean."""
    module = model.module.eval()
    (tensors,) = list(model._make_data_loader(data, batch_size=data.n_obs, shuffle=False))
    with torch.no_grad():
        inference = module.inference(**module._get_inference_input(tensors))
        qz = inference["qz"]
        inference["z"] = module.z_encoder.z_transformation(qz.loc)
        if inference["ql"] is not None:
            inference["library"] = inference["ql"].loc
        px = module.generative(**module._get_generative_input(tensors, inference))["px"]
    mean = px.rate if hasattr(px, "rate") and not hasattr(px, "mu") else px.mean if not hasattr(px, "mu") else px.mu
    return {
        "qzm": qz.loc.numpy(),
        "qzv": qz.scale.square().numpy(),
        "nll": -px.log_prob(tensors["X"]).sum(-1).numpy(),
        "mean": mean.numpy(),
    }


def main(names: list[str]) -> None:
    for name in names:
        setup, options = MODELS[name]
        torch.manual_seed(0)
        data = make_data()
        scvi.model.SCVI.setup_anndata(data, **setup)
        model = scvi.model.SCVI(data, n_hidden=8, n_latent=4, **options)
        model.train(
            max_epochs=3,
            accelerator="cpu",
            batch_size=10,
            check_val_every_n_epoch=1,
            enable_progress_bar=False,
            plan_kwargs={"lr": 0.01},
        )
        folder = Path(__file__).with_name("models") / (f"old-{scvi.__version__}" if name == "old" else name)
        model.save(str(folder), overwrite=True)
        np.savez_compressed(folder / "expected.npz", **compute(model, data))


if __name__ == "__main__":
    main(sys.argv[1:])
