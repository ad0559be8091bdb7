"""Write the OneK1K subset that the held-out losses and differential expression are measured on, as h5ad.

usage: python make_onek1k.py OUT.h5ad [EXAMPLE_SCE.rda]

7,811 cells x 1,000 genes of 40 donors (Yazar et al. 2022, Science 376:eabf3041), as the R package scDesignPop (MIT)
carries them: its data/example_sce.rda is downloaded, 2 MB, unless a file is given. Needs the package `rdata`.
"""

import hashlib
import sys
import urllib.request
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import rdata
import scipy.sparse as sp

URL = (
    "https://raw.githubusercontent.com/chrisycd/scDesignPop/e05f1f9c873d413d70efd12d065e6cc53eded081/"
    "data/example_sce.rda"
)
SHA256 = "36f0d47be65fda1b79c0faa6f6120bd8ae54f9261ae6807dd80f958edefe9101"


def main(out: str, file: str | None = None) -> None:
    """Download, check, convert, write."""
    content = Path(file).read_bytes() if file else urllib.request.urlopen(URL).read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{file or URL}: another file than the one measured, whose SHA-256 is {SHA256}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata's, of classes of Bioconductor that it has no constructor for
        experiment = rdata.conversion.convert(rdata.parser.parse_data(content))["example_sce"]
    counts = experiment.assays.data.listData["counts"]  # genes x cells by columns: cells x genes by rows
    genes, cells = counts.Dimnames
    matrix = sp.csr_matrix((counts.x.astype(np.float32), counts.i, counts.p), shape=(len(cells), len(genes)))
    obs = pd.DataFrame(dict(experiment.colData.listData), index=pd.Index(cells.astype(str), dtype=object))
    obs["indiv"] = pd.Categorical(obs["indiv"])
    ad.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(genes.astype(str), dtype=object))).write_h5ad(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
