"""A minified AnnData in memory, ours or one of scvi-tools: the posterior of each cell in obsm, no counts."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from atlasvi.engine.minified.minified_store import LIBRARY, MINIFY_TYPE
from atlasvi.loaders.cells.memory_cells import NAME, MemoryCells, MemoryObs
from atlasvi.loaders.errors import SourceError

if TYPE_CHECKING:
    import anndata

WITH_COUNTS = "latent_posterior_parameters_with_counts"
TYPE_KEY = "_scvi_adata_minify_type"  # in uns
LATENTS = ("scvi_latent_qzm", "scvi_latent_qzv")  # in obsm
OLDER_LIBRARY = f"_scvi_{LIBRARY}"  # in obs, before scvi-tools 1.2; names in obsm began with an underscore


class MinifiedAnnData(MemoryObs):
    """Read as a minified store is, whatever version of scvi-tools minified it.

    Raises SourceError if it lacks what it should hold, of all cells or of some.
    """

    def __init__(self, adata: "anndata.AnnData") -> None:
        super().__init__(adata)
        self._names = [_find_name(adata, name) or name for name in LATENTS]
        self._library = LIBRARY if LIBRARY in adata.obs else OLDER_LIBRARY
        missing = [name for name in self._names if name not in adata.obsm]
        missing += [LIBRARY] * (self._library not in adata.obs)
        if missing:
            raise SourceError(f"{NAME}: uns says that it is minified, and it holds no {missing[0]!r}: minify it again.")
        parts = [self.read_latent(0, self.n_cells)[0], self.read_column(LIBRARY).to_numpy(np.float32)[:, None]]
        unknown = ~np.isfinite(np.concatenate(parts, axis=1)).all(1)
        if unknown.any():
            raise SourceError(
                f"{NAME}: uns says that it is minified, and {int(unknown.sum()):,} cells have no latents (first: "
                f"{str(adata.obs_names[int(np.argmax(unknown))])!r}): cells that were joined to minified ones must be "
                "minified too, or asked apart from them."
            )

    @property
    def genes(self) -> pd.Index:
        """Gene names."""
        return self.adata.var_names

    @property
    def n_latent(self) -> int:
        """Dimensions of the latents."""
        return self.adata.obsm[self._names[0]].shape[1]

    def read_column(self, name: str) -> pd.Series:
        """One `obs` column of all cells, the library by the name that it has today."""
        return super().read_column(self._library if name == LIBRARY else name)

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm and qzv, float32 [stop - start, latent], of cells [start, stop)."""
        qzm, qzv = (np.asarray(self.adata.obsm[name][start:stop], np.float32) for name in self._names)
        return qzm, qzv


def _find_name(adata: "anndata.AnnData", name: str) -> str | None:
    """The key of obsm that goes by this name, or by the one that it had before scvi-tools 1.2."""
    return next((key for key in (name, f"_{name}") if key in adata.obsm), None)


def is_minified_anndata(adata: "anndata.AnnData", layer: str | None = None) -> bool:
    """Whether an AnnData holds latents instead of counts: uns says so, or (anndata.concat drops uns) it has the latents
    and not one count.

    layer  where the counts would be; None: X
    """
    if TYPE_KEY in adata.uns:
        return adata.uns[TYPE_KEY] == MINIFY_TYPE
    if adata.isbacked or not all(_find_name(adata, name) for name in LATENTS):
        return False
    matrix = adata.X if layer is None else adata.layers.get(layer)
    return matrix is None or (matrix.nnz == 0 if sparse.issparse(matrix) else not np.asarray(matrix).any())


def check_emptied(cells: MemoryCells) -> None:
    """Look at the cells of an AnnData that have no counts.

    Raises SourceError if they had some before they were minified: then other cells, with counts, were joined to them.
    Warns of others.
    """
    empty = cells.count_genes() == 0
    if not empty.any():
        return
    where = f"{int(empty.sum()):,} cells have no counts (first: {str(cells.read_names()[int(np.argmax(empty))])!r})"
    column = next((name for name in (LIBRARY, OLDER_LIBRARY) if name in cells.obs_columns), None)
    if column is not None and (cells.read_column(column).to_numpy(np.float32)[empty] > 0).any():
        raise SourceError(
            f"{NAME}: {where}, and by obs column {column!r} they had: minified cells were joined to cells with counts. "
            "Ask them apart, or minify the others too."
        )
    warnings.warn(f"{NAME}: {where}: what the model says of them means nothing.", UserWarning, stacklevel=4)


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
