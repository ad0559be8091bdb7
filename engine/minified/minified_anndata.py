"""A minified AnnData in memory, made by us or by scvi-tools: each cell's posterior in obsm, and no counts."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from atlasvi.engine.minified.kept_posterior import (
    LATENTS,
    LIBRARY,
    MINIFIED,
    MINIFY_TYPE,
    WITH_COUNTS,
    KeptPosterior,
    check_known,
    find_embedding,
    find_name,
)
from atlasvi.loaders.cells.memory_cells import NAME, MemoryCells, MemoryObs
from atlasvi.loaders.errors import AtlasviWarning, SourceError

if TYPE_CHECKING:
    import anndata


class AnnDataObs:
    """obs of an AnnData by slices of rows, as an `ObsTable`; the library has today's name here."""

    def __init__(self, adata: "anndata.AnnData") -> None:
        self._obs = MemoryObs(adata)
        self.columns = self._obs.obs_columns

    def read_names(self, start: int, stop: int) -> pd.Index:
        """Names of cells [start, stop)."""
        return self._obs.adata.obs_names[start:stop]

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of cells [start, stop), or of all. Raises ColumnError, with the columns of obs."""
        if name == LIBRARY:
            name = find_name(self.columns, LIBRARY) or LIBRARY
        return self._obs.read_column(name, start, stop)

    def take_names(self, rows: np.ndarray) -> pd.Index:
        """Names of the cells with these ascending int64 indices."""
        return self._obs.adata.obs_names[rows]

    def take_column(self, name: str, rows: np.ndarray) -> pd.Series:
        """One column of the cells with these ascending int64 indices. Raises ColumnError, with the columns of obs."""
        return self.read_column(name).iloc[rows].reset_index(drop=True)


class MinifiedAnnData(KeptPosterior):
    """A minified AnnData with the interface of a minified store, whichever version of scvi-tools minified it.

    Raises SourceError if a part is missing, for all cells or for some.
    """

    def __init__(self, adata: "anndata.AnnData") -> None:
        names = [find_name(adata.obsm, name) for name in LATENTS]
        found = dict(zip((*LATENTS, LIBRARY), (*names, find_name(adata.obs, LIBRARY))))
        if missing := [name for name, there in found.items() if there is None]:
            raise SourceError(f"{NAME}: uns says it is minified, but {missing[0]!r} is missing: minify it again.")
        latents = tuple(adata.obsm[name] for name in names)
        embedding = find_embedding(adata.obsm, adata.n_obs)
        super().__init__(NAME, adata.n_obs, AnnDataObs(adata), adata.var, latents, latents[0].shape[1], embedding)
        library = self.read_column(LIBRARY).to_numpy(np.float32)
        known = np.isfinite(self.read_latent(0, self.n_cells)[0]).all(1) & np.isfinite(library)
        check_known(NAME, known, lambda cell: str(adata.obs_names[cell]))


def is_minified_anndata(adata: "anndata.AnnData", layer: str | None = None) -> bool:
    """Whether an AnnData holds latents instead of counts: uns says so, or it has the latents and no counts at all
    (anndata.concat drops uns).

    layer  layer that would hold the counts; None: X
    """
    if MINIFIED in adata.uns:
        return adata.uns[MINIFIED] == MINIFY_TYPE
    if adata.isbacked or not all(find_name(adata.obsm, name) for name in LATENTS):
        return False
    matrix = adata.X if layer is None else adata.layers.get(layer)
    return matrix is None or (matrix.nnz == 0 if sparse.issparse(matrix) else not np.asarray(matrix).any())


def check_emptied(cells: MemoryCells) -> None:
    """Check the cells of an AnnData that have no counts.

    Raises SourceError if they had counts before they were minified: then cells with counts were joined to them. Warns
    of any others.
    """
    empty = cells.count_genes() == 0
    if not empty.any():
        return
    where = f"{int(empty.sum()):,} cells have no counts (first: {str(cells.read_names()[int(np.argmax(empty))])!r})"
    column = find_name(cells.obs_columns, LIBRARY)
    if column is not None and (cells.read_column(column).to_numpy(np.float32)[empty] > 0).any():
        raise SourceError(
            f"{NAME}: {where}, but obs column {column!r} shows that they had: minified cells were joined to cells with "
            "counts. Use them separately, or minify the others too."
        )
    warnings.warn(f"{NAME}: {where}: the model's results for them are meaningless.", AtlasviWarning, stacklevel=4)


def minify_anndata(
    adata: "anndata.AnnData",
    layer: str | None,
    latents: tuple[np.ndarray, np.ndarray],
    library: np.ndarray,
    minified_type: str = MINIFY_TYPE,
) -> "anndata.AnnData":
    """A copy with each cell's posterior; the matrices of counts are empty, unless the minify type keeps them.

    layer    layer that holds the counts; None: X. Other layers are emptied too
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
    small.uns[MINIFIED] = minified_type
    small.obsm.update(zip(LATENTS, latents))
    return small
