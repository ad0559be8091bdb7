"""Make pbmc3k.h5ad and pbmc3k_new.h5ad, the counts of the tutorial, from the whole matrix of pbmc3k.

usage: python examples/make_pbmc3k.py PBMC3K.h5ad

The matrix is 10x Genomics' "3k PBMCs from a Healthy Donor" as anna-neufeld/countsplit.tutorials has it (MIT), with
the cell types of Seurat's tutorial, `seurat_annotations`, as single-cell-data/TileDB-SOMA has them (MIT). Kept are the
2,000 genes that vary most (seurat_v3) and markers that are well known. New cells are the 62 without a type and 438
others.
"""

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.sparse import csr_matrix

KNOWN = ["CD3D", "CD3E", "CD8A", "CCR7", "IL7R", "CD14", "LYZ", "FCGR3A", "MS4A1", "NKG7", "GNLY", "FCER1A", "PPBP"]
FOLDER = Path(__file__).parent


def main(whole: str) -> None:
    """Write both files beside this one."""
    cells = anndata.read_h5ad(whole)
    counts = csr_matrix(cells.X, dtype=np.float32)
    expressed = np.diff(counts.tocsc().indptr) >= 10
    cells, counts = cells[:, expressed], counts[:, expressed]
    varying = sc.pp.highly_variable_genes(anndata.AnnData(counts), flavor="seurat_v3", n_top_genes=2_000, inplace=False)
    kept = np.asarray(varying["highly_variable"]) | cells.var_names.isin(KNOWN)
    types = cells.obs["seurat_annotations"].astype(str).to_numpy()
    others = np.random.default_rng(0).permutation(np.flatnonzero(types != "unlabelled"))[:438]
    is_new = types == "unlabelled"
    is_new[others] = True
    for name, column, chosen in (("pbmc3k", "cell_type", ~is_new), ("pbmc3k_new", "seurat", is_new)):
        obs = pd.DataFrame({column: pd.Categorical(types[chosen])}, index=cells.obs_names[chosen])
        part = anndata.AnnData(counts[chosen][:, kept], obs, pd.DataFrame(index=cells.var_names[kept]))
        part.write_h5ad(FOLDER / f"{name}.h5ad", compression="gzip", compression_opts=9)
        print(f"{name}.h5ad: {part.n_obs:,} cells x {part.n_vars:,} genes")


if __name__ == "__main__":
    main(*sys.argv[1:])
