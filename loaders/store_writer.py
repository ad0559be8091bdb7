"""Writes a cell store row by row, in bounded memory: counts, `obs`, and what training wants to know without a pass."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from atlasvi.loaders import cell_store
from atlasvi.loaders.shards import ShardWriter, create_sharded
from atlasvi.loaders.tables import TableWriter, quiet_zarr


class StoreWriter:
    """Appends cells to a new cell store at `path` (an empty place); complete after `close`.

    n_cells and nnz must be known and be met; largest is the largest count. source_sizes: for each
    name in obs['source'], how many rows it had.
    """

    def __init__(
        self,
        path: Path,
        n_cells: int,
        nnz: int,
        largest: int,
        var: pd.DataFrame,
        dtypes: Mapping[str, object],
        source_sizes: Mapping[str, int],
        profile: str = "fast",
    ) -> None:
        n_genes = len(var)
        self.attributes: dict[str, Any] = {
            "kind": cell_store.KIND,
            "format_version": cell_store.FORMAT_VERSION,
            "n_cells": n_cells,
            "n_genes": n_genes,
            "nnz": nnz,
            "largest_count": largest,
            "counts_dtype": np.min_scalar_type(largest).newbyteorder("<").str,
            "indices_dtype": "<u2" if n_genes <= 2**16 else "<i4",
            "chunk": cell_store.CHUNK,
            "block_chunks": cell_store.BLOCK_CHUNKS,
            "shard_blocks": cell_store.SHARD_BLOCKS,
            "profile": profile,
            "codecs": cell_store.PROFILES[profile],
            "sources": list(source_sizes),
            "source_sizes": list(source_sizes.values()),
        }
        self.root = zarr.open_group(path, mode="w-", zarr_format=3)
        self.root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = self.root.create_group(
            "X",
            attributes={"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]},
        )
        data, indices = cell_store.layouts(self.attributes)
        self._data = ShardWriter(create_sharded(matrix, "data", nnz, data), data)
        self._indices = ShardWriter(create_sharded(matrix, "indices", nnz, indices), indices)
        layout = cell_store.INDPTR_LAYOUT
        self._indptr = ShardWriter(create_sharded(matrix, "indptr", n_cells + 1, layout), layout)
        self._indptr.append(np.zeros(1, np.int64))
        self._obs = TableWriter(self.root, "obs", n_cells, dtypes)
        self._var = var
        self._written_cells, self._written_nnz = 0, 0
        self._block_starts = [0]
        self._block_elements = data.chunk * cell_store.BLOCK_CHUNKS
        self._gene_totals, self._gene_cells = np.zeros(n_genes, np.int64), np.zeros(n_genes, np.int64)
        # moments of log library a category, for every categorical column (cells without a count are left out)
        self._moments = {
            name: np.zeros((len(dtype.categories), 3))
            for name, dtype in self._obs.dtypes.items()
            if isinstance(dtype, pd.CategoricalDtype)
        }

    def append(self, row_nnz: np.ndarray, indices: np.ndarray, counts: np.ndarray, record: dict) -> None:
        """Add cells: stored counts a row [cells], gene indices (sorted in a row) and counts [nnz], `obs/` columns."""
        ends = self._written_nnz + np.cumsum(row_nnz, dtype=np.int64)
        starts = ends - row_nnz
        while starts.size and (boundary := len(self._block_starts) * self._block_elements) <= starts[-1]:
            self._block_starts.append(self._written_cells + int(np.searchsorted(starts, boundary)))
        self._indptr.append(ends)
        self._data.append(counts)
        self._indices.append(indices)
        n_genes = len(self._var)
        self._gene_cells += np.bincount(indices, minlength=n_genes)
        self._gene_totals += np.bincount(indices, weights=counts, minlength=n_genes).astype(np.int64)
        self._add_moments(row_nnz, counts, record)
        self._obs.append(record)
        self._written_cells += len(row_nnz)
        self._written_nnz += int(row_nnz.sum())

    def _add_moments(self, row_nnz: np.ndarray, counts: np.ndarray, record: dict) -> None:
        library = np.bincount(np.repeat(np.arange(len(row_nnz)), row_nnz), weights=counts, minlength=len(row_nnz))
        log_library = np.log(library, where=library > 0, out=np.zeros_like(library))
        for name, moments in self._moments.items():
            codes = record[f"obs/{name}"]
            if codes.dtype == object:
                codes = self._obs.dtypes[name].categories.get_indexer(pd.Index(codes))  # type: ignore[attr-defined]
            use = (codes >= 0) & (library > 0)
            for k, weights in enumerate((None, log_library[use], log_library[use] ** 2)):
                moments[:, k] += np.bincount(codes[use], weights=weights, minlength=len(moments))

    def close(self) -> None:
        """Write what was gathered, then the attributes that make the folder a cell store."""
        from anndata.io import write_elem

        assert (self._written_cells, self._written_nnz) == (self.attributes["n_cells"], self.attributes["nnz"])
        for writer in (self._data, self._indices, self._indptr):
            writer.close()
        n_blocks = max(-(-self._written_nnz // self._block_elements), 1)
        statistics = {
            # rows without counts after the last stored count belong to the last block
            "block_starts": np.array([*self._block_starts[:n_blocks], self._written_cells]),
            "gene_totals": self._gene_totals,
            "gene_cells": self._gene_cells,
            "library": self._moments,
        }
        with quiet_zarr():
            write_elem(self.root, "var", self._var)
            write_elem(self.root, "uns", {"atlasvi": statistics})
            for name in ("layers", "obsm", "obsp", "varm", "varp"):
                write_elem(self.root, name, {})
            self.root.attrs["atlasvi"] = self.attributes
            zarr.consolidate_metadata(self.root.store)
