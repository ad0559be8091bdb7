"""An AnnData in memory seen as cells in blocks; `open_cells` does the same for files."""

import copy
import os
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pandas as pd
from scipy import sparse

from atlasvi.loaders.errors import ColumnError, CountsError, SourceError
from atlasvi.loaders.identity import cell_keys
from atlasvi.loaders.rows.block_rows import Rows, choose_index_dtype
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.count_checks import check_counts
from atlasvi.loaders.rows.narrowing import narrow_rows
from atlasvi.loaders.sources.data_spec import MEMORY, DataSpec
from atlasvi.loaders.sources.open_source import check_gene_names
from atlasvi.loaders.tables.frames import make_names
from atlasvi.loaders.tables.store_tables import check_column, to_storable

if TYPE_CHECKING:
    import anndata

BLOCK_CELLS = 2**15
NAME = "the AnnData"  # its name in errors


class MemoryObs:
    """`obs` of an AnnData, read by column as from a file."""

    def __init__(self, adata: "anndata.AnnData") -> None:
        self.adata, self.path, self.n_cells = adata, NAME, adata.n_obs
        self.obs_columns = [str(name) for name in adata.obs]

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One `obs` column of cells [start, stop), or of all. Raises ColumnError, naming those that are there."""
        check_column(name, self.obs_columns, NAME)
        places = [place for place, there in enumerate(self.obs_columns) if there == name]
        if len(places) > 1:
            raise ColumnError(f"{NAME}: obs has {len(places)} columns called {name!r}: give them different names.")
        return self.adata.obs.iloc[start:stop, places[0]].reset_index(drop=True)

    def read_names(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Names of cells [start, stop), or of all."""
        return self.adata.obs_names[start:stop]


def list_layers(adata: "anndata.AnnData") -> list[str]:
    """Names of the layers, without X, which anndata lists there since 0.13, under None."""
    return [name for name in adata.layers if name is not None]


class MemoryCells(MemoryObs):
    """Cells of an AnnData as `Cells`: shuffled as a whole, empty cells kept.

    adata  X (or the layer) dense, CSR or CSC of any dtype; its counts are copied once, into the narrowest dtypes
    layer  which matrix holds the counts; None: X
    fractions  accept values that are not whole (see `check_counts`)
    Raises CountsError where values are not counts, ColumnError if the layer is missing, GeneError if gene names repeat.
    """

    def __init__(self, adata: "anndata.AnnData", layer: str | None = None, fractions: bool = False) -> None:
        super().__init__(adata)
        self.layer = layer
        self.spec = DataSpec(NAME, layer=layer, values="numbers" if fractions else None, format=MEMORY)
        if layer is not None and layer not in adata.layers:
            raise ColumnError(
                f"{NAME}: there is no layer {layer!r} (it has: {', '.join(list_layers(adata)) or 'none'})."
            )
        matrix = _take_matrix(adata, layer)
        if matrix is None:
            raise SourceError(
                f"{NAME}: X is empty: name the layer that holds the counts (it has: {', '.join(list_layers(adata))})."
            )
        self.var = adata.var.copy(deep=False)  # genes that the user renames later keep their names here
        check_gene_names(NAME, self.var)
        self.source_sizes = [self.n_cells]
        self._seen = _fingerprint(adata, layer, matrix)
        self._rows = self._narrow(matrix)
        self.block_starts = np.append(np.arange(0, self.n_cells, BLOCK_CELLS), self.n_cells)
        self.group_blocks = max(len(self.block_starts) - 1, 1)  # 1 even if there are no cells and so no blocks
        self.mixing = "shuffled as a whole in memory"

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns."""
        return self.var.index

    def look_again(self) -> "MemoryCells | None":
        """The same counts with the current columns of obs; None if counts or genes of the AnnData have changed."""
        now = _fingerprint(self.adata, self.layer, _take_matrix(self.adata, self.layer))
        if now is None or now != self._seen or not self.genes.equals(self.adata.var_names):
            return None
        same = copy.copy(self)
        MemoryObs.__init__(same, self.adata)
        return same

    def count_genes(self) -> np.ndarray:
        """int32 [cells]: number of genes with counts in each cell."""
        return self._rows.lengths

    def read_block(self, block: int) -> Rows:
        """The counts of one block; nothing is copied."""
        start, stop = (int(edge) for edge in self.block_starts[block : block + 2])
        rows = self._rows
        return Rows(start, rows.starts[start:stop], rows.lengths[start:stop], rows.indices, rows.counts)

    def ask_ahead(self, block: int) -> None:
        """Nothing: all is in memory."""

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop), with `source` and `source_row` as files have them."""
        obs = to_storable(self.adata.obs.iloc[start:stop], f"{NAME}: obs", aside=True)
        source = pd.Categorical.from_codes(np.zeros(len(obs), int), make_names([NAME]))
        return obs.assign(source=source, source_row=np.arange(start, start + len(obs)))

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: a hash of each cell's index."""
        return cell_keys(0, np.arange(start, stop))

    def allow_fractions(self) -> "MemoryCells":
        """The same cells, accepting values that are not whole."""
        return self if self.spec.takes_fractions else MemoryCells(self.adata, self.layer, fractions=True)

    def close(self) -> None:
        """Nothing is open."""

    def _narrow(self, matrix: Any) -> Rows:
        n_genes = len(self.var)
        counts = sparse.csr_matrix(matrix[:] if not sparse.issparse(matrix) else matrix)
        rows = narrow_rows(0, counts.indptr.astype(np.int64), counts.indices, counts.data, n_genes, Buffers())
        if rows is not None:
            return rows
        try:
            counts.check_format(full_check=True)  # compiled code would follow indices outside the matrix
        except ValueError as error:
            raise CountsError(
                f"{NAME}: {self.layer or 'X'} is not a valid sparse matrix ({error}): make it again."
            ) from None
        if not counts.has_canonical_format:
            counts = counts.copy()  # it may share memory with the user's arrays, which must not change
            counts.sum_duplicates()
        names, layers = self.adata.obs_names, list_layers(self.adata)
        places = self.layer or "X", [*layers, *["X"] * bool(layers)]
        checked = check_counts(
            counts, NAME, lambda row: str(names[row]), self.genes, *places, fractions=self.spec.takes_fractions
        )
        if (checked.data == 0).any():
            checked = checked.copy()
            checked.eliminate_zeros()
        indices = checked.indices.astype(choose_index_dtype(n_genes))
        return Rows.from_csr(0, checked.indptr, indices, checked.data)


def _take_matrix(adata: "anndata.AnnData", layer: str | None) -> Any:
    return adata.X if layer is None else adata.layers.get(layer)


def _fingerprint(adata: "anndata.AnnData", layer: str | None, matrix: Any) -> tuple | None:
    """A value that changes when the counts of an AnnData do; None if that can't be detected (then they are reread)."""
    if adata.isbacked and layer is None:
        return str(adata.filename), os.stat(adata.filename).st_mtime_ns, adata.shape
    if sparse.issparse(matrix):
        parts = [matrix.data, matrix.indices, matrix.indptr]
    elif isinstance(matrix, np.ndarray):
        parts = [matrix]
    else:
        return None
    if any(part.dtype.hasobject for part in parts):
        return None
    seen: list[Any] = [matrix.shape]
    for part in parts:
        flat = np.asarray(part).ravel(order="K")  # a view, where the array is contiguous
        seen += [part.dtype, part.strides, google_crc32c.value(flat.view(np.uint8))]  # accepts any buffer
    return tuple(seen)
