"""Write queries.npz: what scvi-tools answers about `onek1k_seed/minified.h5ad`; run by hand with scvi-tools 1.5.1.

    python tests/golden/make_queries.py SHARED_FOLDER

Draws are random: of each answer the mean of many draws and their standard deviation, or the answers from two seeds.
"""

import sys
import warnings
from pathlib import Path

import anndata
import numpy as np
import scvi

N_CELLS, N_GENES, N_DRAWS = 12, 25, 1000


def main(shared: Path) -> None:
    warnings.filterwarnings("ignore")
    folder = shared / "scvi_models" / "onek1k_seed"
    cells = anndata.read_h5ad(folder / "minified.h5ad")
    model = scvi.model.SCVI.load(folder, adata=cells)
    rows = np.load(folder / "expected.npz")["rows"][:N_CELLS]
    genes = cells.var_names[::40][:N_GENES].tolist()
    found: dict[str, np.ndarray] = {"rows": rows, "genes": np.array(genes), "batch": np.array("SAMP3")}
    found["qzm"], found["qzv"] = model.get_latent_representation(indices=rows, return_dist=True)
    found["library"] = np.asarray(model.get_latent_library_size(indices=rows, give_mean=False)).ravel()

    def keep(name: str, draws: np.ndarray) -> None:
        """draws [draws, cells, genes]"""
        found[name], found[f"{name}_std"] = draws.mean(0).astype(np.float32), draws.std(0).astype(np.float32)

    few = {"indices": rows, "n_samples": N_DRAWS}
    options = {**few, "gene_list": genes, "return_mean": False, "return_numpy": True}
    scvi.settings.seed = 0
    keep("expression", model.get_normalized_expression(**options))
    keep("scaled", model.get_normalized_expression(**options, library_size=1e4, transform_batch="SAMP3"))
    keep("observed", model.get_normalized_expression(**options, library_size="latent"))
    columns = cells.var_names.get_indexer(genes)
    parameters = model.get_likelihood_parameters(**few, give_mean=False)
    keep("mean", parameters["mean"][..., columns])
    keep("dispersions", np.broadcast_to(parameters["dispersions"], parameters["mean"].shape)[..., columns])
    sampled = model.posterior_predictive_sample(**few, gene_list=genes)
    keep("sample", np.moveaxis(np.asarray(sampled.todense()), 2, 0))
    for name, seeds in (("spearman", (0, 1)), ("pearson", (0, 1))):
        matrices = []
        for seed in seeds:
            scvi.settings.seed = seed
            matrix = model.get_feature_correlation_matrix(
                indices=np.arange(0, len(cells), 40), n_samples=20, correlation_type=name
            )
            matrices.append(np.asarray(matrix)[np.ix_(columns, columns)])
        found[name] = np.array(matrices, np.float32)
    for mode, column in (("vanilla", "bayes_factor"), ("change", "lfc_mean")):
        answers = []
        for seed in (0, 1):
            scvi.settings.seed = seed
            table = model.differential_expression(groupby="cell_type", group1="mononc", group2="bmem", mode=mode)
            answers.append(table.loc[cells.var_names, column].to_numpy())
        found[f"{mode}_{column}"] = np.array(answers, np.float32)
    counted = anndata.read_h5ad(shared / "data" / "onek1k.h5ad")
    full = scvi.model.SCVI.load(folder, adata=counted)
    elbos, errors = [], []
    for seed in range(20):
        scvi.settings.seed = seed
        elbos.append(float(full.get_elbo(indices=rows)))
        errors.append(float(full.get_reconstruction_error(indices=rows)["reconstruction_loss"]))
    found["elbo"], found["reconstruction"] = np.array(elbos), np.array(errors)
    found["marginal"] = np.array(float(full.get_marginal_ll(indices=rows, n_mc_samples=1000)))
    np.savez_compressed(Path(__file__).with_name("queries.npz"), **found)
    for name, values in found.items():
        print(name, values.shape, values.ravel()[:3])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
