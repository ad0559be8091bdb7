"""scvi-tools' differential expression: python differential.py MODEL_DIR H5AD GROUPBY SAMPLES SEED OUT.csv.

Runs in the peers' environment, imports nothing of atlasvi.
"""

import sys
import time

import anndata
import scvi


def main(model_dir, h5ad, groupby, n_samples, seed, out):
    """Compare each group with the rest, write the table, print the seconds."""
    scvi.settings.seed = int(seed)
    model = scvi.model.SCVI.load(model_dir, adata=anndata.read_h5ad(h5ad), accelerator="cpu")
    start = time.perf_counter()
    table = model.differential_expression(groupby=groupby, mode="change", n_samples_overall=int(n_samples), silent=True)
    print(time.perf_counter() - start)
    table.to_csv(out)


main(*sys.argv[1:])
