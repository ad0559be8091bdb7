"""A minified AnnData in memory, ours or one of scvi-tools: the posterior of each cell in obsm, no counts."""

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from atlasvi.engine.minified import LIBRARY, MINIFY_TYPE
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.memory import NAME, MemoryObs

if TYPE_CHECKING:
    import anndata

WITH_COUNTS = "latent_posterior_parameters_with_counts"
TYPE_KEY = "_scvi_adata_minify_type"  # in uns
LATENTS = ("scvi_latent_qzm", "scvi_latent_qzv")  # in obsm


class MinifiedAnnData(MemoryObs):
    """Read as a minified store is. Raises SourceError if it lacks what it should hold."""

    def __init__(self, adata: "anndata.AnnData") -> None:
        super().__init__(adata)
        missing = [name for name in LATENTS if name not in adata.obsm]
        missing += [LIBRARY] * (LIBRARY not in self.obs_columns)
        if missing:
            raise SourceError(f"{NAME}: uns says that it is minified, and it holds no {missing[0]!r}: minify it again.")

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""
        qzm, qzv = (np.asarray(self.adata.obsm[name][start:stop], np.float32) for name in LATENTS)
        return qzm, qzv


def minify_anndata(
    adata: "anndata.AnnData",
    layer: str | None,
    latents: tuple[np.ndarray, np.ndarray],
    library: np.ndarray,
    minified_type: str = MINIFY_TYPE,
) -> "anndata.AnnData":
    """A copy with the posterior of each cell; empty matrices where the counts were, unless the type keeps them.

    layer    where the counts are; None: X. Other layers go with them
    latents  qzm and qzv, float32 [cells, latent]; library float32 [cells], counts
    """
    import anndata

    if minified_type == WITH_COUNTS:
        small = adata.copy()
    else:
        parts = {name: dict(getattr(adata, name)) for name in ("uns", "obsm", "varm", "obsp", "varp")}
        empty = sparse.csr_matrix(adata.shape, dtype=np.float32)
        small = anndata.AnnData(
            empty, adata.obs.copy(), adata.var.copy(), layers={layer: empty.copy()} if layer else None, **parts
        )
    small.obs[LIBRARY] = library
    small.uns[TYPE_KEY] = minified_type
    small.obsm.update(zip(LATENTS, latents))
    return small
