"""scvi-tools and a hub folder of ours: python hub.py DIR SAVED OUT.npz [OWNER/NAME]

Opens DIR with `scvi.hub.HubModel`, writes its latents and the proportions of the first 20 genes decoded at their means
to OUT.npz, saves it again in place and, as a model with its data, to SAVED; with a name, pushes it to the hub that
HF_ENDPOINT names (token in HF_TOKEN). Runs in the peers' environment, with huggingface_hub; imports nothing of atlasvi.
"""

import sys
import warnings

import anndata
import numpy as np
import torch
from scvi.hub import HubMetadata, HubModel, HubModelCardHelper


def main(folder: str, saved: str, out: str, repository: str | None = None) -> None:
    """Open, ask, save, push."""
    warnings.filterwarnings("ignore")
    hub = HubModel(folder)
    model, adata = hub.model, hub.adata
    mean, variance = model.get_latent_representation(return_dist=True)
    batch = torch.as_tensor(np.asarray(model.adata_manager.get_from_registry("batch"), np.int64))
    library = torch.as_tensor(np.log(np.asarray(adata.obs["observed_lib_size"], np.float32)))[:, None]
    with torch.no_grad():
        decoded = model.module.generative(torch.as_tensor(mean), library, batch)["px"].scale
    np.savez(
        out,
        cells=np.array(adata.obs_names, str),
        mean=mean,
        variance=variance,
        proportions=decoded[:, :20].numpy(),
        card=len(hub.model_card.content),
        minified=str(model.minified_data_type or ""),
    )
    hub.save(overwrite=True)
    model.save(saved, save_anndata=True)
    metadata = HubMetadata.from_dir(saved, anndata_version=anndata.__version__)
    card = HubModelCardHelper.from_dir(saved, license_info="mit", anndata_version=anndata.__version__)
    theirs = HubModel(saved, metadata=metadata, model_card=card)
    theirs.save()
    if repository:
        theirs.push_to_huggingface_hub(repository, repo_create=True)


main(*sys.argv[1:])
