"""Write the synthetic atlas that the loader comparison uses.

usage: python make_atlas.py OUT_DIR [N_FILES]

Each file holds 100,000 cells x 20,000 genes, 30 cell types, 12 batches, log-normal library sizes
(median 2,200 counts), 1,185 detected genes per cell on average, 69% of the stored counts equal to 1.
About 80 s and 3 GB of memory a file; 0.95 GB each on disk (uncompressed float32 / int32 CSR).
"""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

CELLS, GENES, TYPES, BATCHES = 100_000, 20_000, 30, 12


def main(out, n_files=2):
    """Draw and write the files, each by slices of 5,000 cells."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 2.2, GENES)
    profiles = base[None] * rng.lognormal(0, 0.8, (TYPES, GENES))
    cdf = np.cumsum(profiles / profiles.sum(1, keepdims=True), 1)
    for f in range(int(n_files)):
        cell_type = rng.integers(0, TYPES, CELLS)
        library = rng.lognormal(np.log(2200), 0.5, CELLS).astype(int)
        blocks = []
        for start in range(0, CELLS, 5000):
            types, sizes = cell_type[start : start + 5000], library[start : start + 5000]
            rows = np.repeat(np.arange(len(types)), sizes)
            uniform, columns = rng.random(sizes.sum()), np.empty(sizes.sum(), np.int64)
            for k in range(TYPES):
                mask = types[rows] == k
                columns[mask] = np.minimum(np.searchsorted(cdf[k], uniform[mask]), GENES - 1)
            key, count = np.unique(rows * GENES + columns, return_counts=True)
            shape = (len(types), GENES)
            blocks.append(sp.csr_matrix((count.astype(np.float32), (key // GENES, key % GENES)), shape=shape))
        obs = pd.DataFrame(
            {
                "batch": pd.Categorical(rng.integers(0, BATCHES, CELLS).astype(str)),
                "cell_type": pd.Categorical(cell_type.astype(str)),
            },
            index=[f"f{f}_{i}" for i in range(CELLS)],
        )
        var = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
        ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var).write_h5ad(Path(out) / f"atlas{f}.h5ad")


main(*sys.argv[1:])
