"""Write what scvi-tools answers to questions that draw to answers.npz. Arguments: a folder with a model, its counts.

Run it where scvi-tools 1.5.1 is installed, with shared/scvi_models/onek1k_seed and shared/data/onek1k.h5ad: the model
is asked about the latents of its minified.h5ad. Each answer is there once for each of SEEDS, [seeds, ...], so that a
test knows how far answers of scvi-tools are from each other:

rows                   int64 [cells]: the cells that are asked about, every 200th;  genes  the names of the columns
expression             float32 [seeds, cells, genes]: the mean of 10 draws, at 10,000 counts a cell
expression_as          the same, decoded as two batches, `batches`
expression_overall     [seeds, 2, genes]: mean and standard deviation over 1,000 draws of all these cells together
sample, sample_square  [seeds, cells, genes]: mean of counts and of their squares in 20 posterior predictive draws
mean                   [seeds, cells, genes]: the mean parameter of the likelihood, over 10 draws of z
dispersions            [seeds, cells, genes]: the inverse dispersion, which no draw changes
pearson, spearman      [seeds, genes, genes]: correlations of 10 draws for each cell;  spearman_as  as the two batches
latent                 [seeds, cells, latent]: one draw of z for each cell
vanilla_*, change_*    [seeds, compared]: columns of differential expression of `groups`, for the genes `compared`
corrected_*, rest_*    the same: mode vanilla with batch correction; the first group with the rest, in mode change
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scvi

warnings.filterwarnings("ignore")
scvi.settings.verbosity = logging.ERROR
SEEDS, STEP, N_GENES, GROUPS, DRAWS = 5, 200, 20, ["bmem", "monoc"], 1_000
TABLES = {
    "vanilla": {"group2": GROUPS[1]},
    "corrected": {"group2": GROUPS[1], "batch_correction": True},
    "change": {"group2": GROUPS[1], "mode": "change"},
    "rest": {"mode": "change"},
}
COLUMNS = {
    "vanilla": ["proba_m1", "bayes_factor", "scale1", "scale2"],
    "change": ["proba_de", "lfc_mean", "lfc_std", "scale1", "scale2"],
}


def minify(folder: str, counts: str) -> Any:
    """The model with its minified data, which its folder has without saying so in model.pt."""
    kept = anndata.read_h5ad(f"{folder}/minified.h5ad")
    data = anndata.read_h5ad(counts)
    assert (data.obs_names == kept.obs_names).all()
    for name in ("X_latent_qzm", "X_latent_qzv"):
        data.obsm[name] = kept.obsm[name]
    model = scvi.model.SCVI.load(folder, data, accelerator="cpu")
    model.minify_adata(use_latent_qzm_key="X_latent_qzm", use_latent_qzv_key="X_latent_qzv")
    return model


def ask(model: Any, seed: int) -> dict[str, np.ndarray]:
    """All answers with one seed."""
    scvi.settings.seed = seed
    data = model.adata
    rows = np.arange(0, data.n_obs, STEP)
    places = np.arange(0, data.n_vars, data.n_vars // N_GENES)
    genes, batches = data.var_names[places].tolist(), data.obs["indiv"].cat.categories[:2].tolist()
    chosen = {"indices": rows, "gene_list": genes}
    scaled = {**chosen, "library_size": 1e4, "return_numpy": True}
    found = {"rows": rows, "genes": np.array(genes), "batches": np.array(batches), "groups": np.array(GROUPS)}
    found["expression"] = model.get_normalized_expression(n_samples=10, **scaled)
    found["expression_as"] = model.get_normalized_expression(n_samples=10, transform_batch=batches, **scaled)
    overall = model.get_normalized_expression(n_samples_overall=DRAWS, **scaled)
    found["expression_overall"] = np.stack([overall.mean(0), overall.std(0)])
    counts = model.posterior_predictive_sample(n_samples=20, **chosen).todense()
    found["sample"], found["sample_square"] = counts.mean(-1), np.square(counts).mean(-1)
    parameters = model.get_likelihood_parameters(indices=rows, n_samples=10, give_mean=True)
    found["mean"], found["dispersions"] = parameters["mean"][:, places], np.broadcast_to(
        parameters["dispersions"], parameters["mean"].shape
    )[:, places]  # fmt: skip
    for name, options in (
        ("pearson", {"correlation_type": "pearson"}),
        ("spearman", {}),
        ("spearman_as", {"transform_batch": batches}),
    ):
        matrix = model.get_feature_correlation_matrix(indices=rows, n_samples=10, **options)
        found[name] = matrix.loc[genes, genes].to_numpy()
    found["latent"] = model.get_latent_representation(indices=rows, give_mean=False)
    for name, options in TABLES.items():
        table = model.differential_expression(
            groupby="cell_type", group1=GROUPS[0], n_samples_overall=DRAWS, all_stats=False, silent=True, **options
        ).loc[data.var_names[::4]]
        for column in COLUMNS[options.get("mode", "vanilla")]:
            found[f"{name}_{column}"] = table[column].to_numpy()
    return found


def main(folder: str, counts: str) -> None:
    model = minify(folder, counts)
    every = [ask(model, seed) for seed in range(SEEDS)]
    kept = {name: every[0][name] for name in ("rows", "genes", "batches", "groups")}
    drawn = {name: np.stack([each[name] for each in every]).astype(np.float32) for name in every[0] if name not in kept}
    np.savez_compressed(Path(__file__).with_name("answers.npz"), **kept, **drawn)


if __name__ == "__main__":
    main(*sys.argv[1:])
