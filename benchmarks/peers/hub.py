"""scvi-tools and a hub folder of ours: python hub.py DIR SAVED OUT.npz [OWNER/NAME]

Opens DIR with `scvi.hub.HubModel`, writes its latents and decoded expression to OUT.npz, saves it again in place and,
as a model with its data, to SAVED; with a name, pushes it to the hub that HF_ENDPOINT names (token in HF_TOKEN). Runs
in the peers' environment, with huggingface_hub; imports nothing of atlasvi.
"""

import sys
import warnings

import anndata
import numpy as np
from scvi.hub import HubMetadata, HubModel, HubModelCardHelper


def main(folder: str, saved: str, out: str, repository: str | None = None) -> None:
    """Open, ask, save, push."""
    warnings.filterwarnings("ignore")
    hub = HubModel(folder)
    model, adata = hub.model, hub.adata
    mean, variance = model.get_latent_representation(return_dist=True)
    expression = model.get_normalized_expression(gene_list=list(adata.var_names[:5]), library_size=1e4)
    np.savez(
        out,
        cells=np.array(adata.obs_names, str),
        mean=mean,
        variance=variance,
        expression=np.asarray(expression),
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
