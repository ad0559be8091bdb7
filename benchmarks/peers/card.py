"""scvi-tools' criticism report: python card.py MODEL_DIR H5AD LABELS_KEY SEED OUT.json.

Runs in the peers' environment, imports nothing of atlasvi. `create_criticism_report` writes two decimals of each,
so what it computed is taken from the object that it used, by the same functions as in its table.
"""

import json
import resource
import sys
import tempfile
import time

import anndata
import scvi
from scipy.stats import pearsonr, spearmanr
from scvi.criticism import _create_criticism_report as report
from sklearn.metrics import mean_absolute_error, r2_score

FIGURES = {
    "mae": mean_absolute_error,
    "pearson": lambda drawn, real: pearsonr(drawn, real)[0],
    "spearman": lambda drawn, real: spearmanr(drawn, real)[0],
    "r2": r2_score,
}
used = []


class Kept(report.PPC):
    """Keeps itself for a look at the figures."""

    def __init__(self, *args, **kwargs):
        used.append(self)
        super().__init__(*args, **kwargs)


def main(model_dir, h5ad, labels_key, seed, out):
    """Make the report, write its figures, seconds and peak memory."""
    report.PPC = Kept
    scvi.settings.seed = int(seed)
    adata = anndata.read_h5ad(h5ad)
    model = scvi.model.SCVI.load(model_dir, adata=adata, accelerator="cpu")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scvi.criticism.create_criticism_report(model, n_samples=5, label_key=labels_key, save_folder=folder)
    seconds = time.perf_counter() - start
    metrics, found = used[0].metrics, {}
    cells, genes = ((metrics[name]["model"].values, metrics[name]["Raw"].values) for name in ("cv_cell", "cv_gene"))
    for name, compare in FIGURES.items():
        found[f"all genes variation {name}"] = float(compare(*genes))
        for part, rows in (("training", model.train_indices), ("validation", model.validation_indices)):
            if rows is not None:  # a model need not hold its split
                found[f"{part} cells variation {name}"] = float(compare(cells[0][rows], cells[1][rows]))
    for _, line in metrics["diff_exp"]["summary"].iterrows():
        for name in ("gene_f1", "lfc_mae", "lfc_pearson", "lfc_spearman", "roc_auc", "pr_auc"):
            found[f"all label {line['group']!r} Welch {name}"] = float(line[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(out, "w") as file:
        json.dump({"figures": found, "seconds": seconds, "n_cells": adata.n_obs, "peak_memory_bytes": peak}, file)


main(*sys.argv[1:])
