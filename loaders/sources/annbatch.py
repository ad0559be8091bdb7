"""annbatch's collections: a Zarr group whose children dataset_0, dataset_1, ... are AnnData with shuffled cells."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from atlasvi.loaders.errors import GeneError
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.run_lengths import choose_run
from atlasvi.loaders.tables.frames import make_frame
from atlasvi.loaders.tables.merged_columns import convert_column, join_column

if TYPE_CHECKING:
    from atlasvi.loaders.sources.anndata_files import AnnDataSource

SLICE_ROWS = 2**16
DATASET = re.compile(r"dataset_(\d+)")
Part = TypeVar("Part")


def name_datasets(root: zarr.Group) -> list[str]:
    """The names of a collection's datasets, in the order of their numbers; empty if it is not a collection."""
    numbered = {match[1]: name for name in root if (match := DATASET.fullmatch(name))}
    return [numbered[number] for number in sorted(numbered, key=int)]


class Collection:
    """Several AnnData sources over the same genes, one after the other as one; the cells were shuffled as a whole.

    Raises GeneError where a dataset has other genes than the first, or the same in another order.
    """

    shuffled = True

    def __init__(self, spec: DataSpec, parts: "Sequence[AnnDataSource]") -> None:
        self.spec, self.path, self._parts = spec, spec.path, list(parts)
        first = self._parts[0]
        self.var, self.layer, self.anndata_layer = first.var, first.layer, first.anndata_layer
        self.spooled = any(part.spooled for part in self._parts)
        self.notes = [note for part in self._parts for note in part.notes]
        self.layers = [name for name in first.layers if all(name in part.layers for part in parts)]
        for part in self._parts[1:]:
            if not part.var.index.equals(first.var.index):
                raise GeneError(
                    f"{part.path}: its genes are not those of {first.path}, or in another order; write the collection "
                    "again, or ingest its datasets: atlasvi ingest DATASET... --out STORE."
                )
        self._starts = np.cumsum([0] + [part.n_cells for part in self._parts])
        self.n_cells = int(self._starts[-1])
        known = [part.nnz for part in self._parts if part.nnz is not None]
        self.nnz = sum(known) if len(known) == len(self._parts) else None
        heads = [part.read_obs(0, 0) for part in self._parts]
        names = dict.fromkeys(str(name) for head in heads for name in head)
        self._dtypes = {name: join_column(heads, name, self._read_part_obs) for name in names}

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes, as stored: canonical CSR, values not validated."""
        rows = list(self._read_parts(start, stop, lambda part, low, high: part.read_counts(low, high)))
        return rows[0] if len(rows) == 1 else sp.vstack(rows, format="csr")

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as counts of narrow dtypes, fast; None where the caller must use `read_counts`."""
        parts: list[Rows] = []
        for rows in self._read_parts(start, stop, lambda part, low, high: part.read_narrow(low, high)):
            if rows is None:
                return None
            parts.append(rows)
        return Rows(start, *_join_rows(parts))

    def ask_ahead(self, start: int, stop: int) -> object:
        """Begin to read what `read_narrow` will need of a bucket; what is returned must be kept until then."""
        return list(self._read_parts(start, stop, lambda part, low, high: part.ask_ahead(low, high)))

    def count_run_cells(self) -> int:
        """Number of cells that is best read at a time, beginning at multiples of this number."""
        return choose_run(max(part.count_piece_cells() for part in self._parts), self.shuffled)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, with the cell names as index and the categories of all datasets."""
        slices = []
        for obs in self._read_parts(start, stop, lambda part, low, high: part.read_obs(low, high)):
            columns = {name: convert_column(obs, name, dtype) for name, dtype in self._dtypes.items()}
            slices.append(make_frame(columns, obs.index))
        return slices[0] if len(slices) == 1 else pd.concat(slices)

    def close(self) -> None:
        """Close the files and remove temporary ones."""
        for part in self._parts:
            part.close()

    def _read_part_obs(self, number: int) -> Iterator[pd.DataFrame]:
        """`obs` of one dataset, in slices."""
        part = self._parts[number]
        return (part.read_obs(at, min(at + SLICE_ROWS, part.n_cells)) for at in range(0, part.n_cells, SLICE_ROWS))

    def _read_parts(self, start: int, stop: int, read: "Callable[[AnnDataSource, int, int], Part]") -> Iterator[Part]:
        """What `read` returns for each dataset that has some of the rows [start, stop); for one dataset if no rows."""
        number = min(int(np.searchsorted(self._starts, start, side="right")) - 1, len(self._parts) - 1)
        while True:
            low, high = (int(edge) for edge in self._starts[number : number + 2])
            yield read(self._parts[number], start - low, min(stop, high) - low)
            if stop <= high:
                return
            start, number = high, number + 1


def _join_rows(parts: list[Rows]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """starts, lengths, indices and counts of consecutive parts, joined."""
    if len(parts) == 1:
        return parts[0].starts, parts[0].lengths, parts[0].indices, parts[0].counts
    offsets = np.cumsum([0] + [len(part.indices) for part in parts])
    return (
        np.concatenate([part.starts + offset for part, offset in zip(parts, offsets)]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )
