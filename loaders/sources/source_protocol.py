"""The protocol of a source: the cells of one file or folder of counts, whatever its format, by slices of rows."""

from typing import Protocol, runtime_checkable

import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec


@runtime_checkable
class Source(Protocol):
    """Cells of one file or folder: counts and `obs` by slices of rows, and all genes.

    Every format implements all of it; a source that consists of others delegates to them. Rows are indices of cells,
    0 <= start <= stop <= n_cells. Several threads may call all read methods at once.
    Memory is bounded by what a call returns, plus `var`, plus about 200 MiB, whatever the size of the file.
    """

    var: pd.DataFrame
    """[genes] rows; the index holds the gene names: str, unique, none missing (`open_source` checks it)."""

    @property
    def spec(self) -> DataSpec:
        """The path and the options that it was opened with; options that were None are filled in."""

    @property
    def path(self) -> str:
        """The path as the user gave it, used in errors and in `obs['source']`."""

    @property
    def n_cells(self) -> int:
        """Rows."""

    @property
    def nnz(self) -> int | None:
        """Number of stored entries if it is known without a pass over the data, else None.

        Explicit zeros, duplicates and features that are not read are included.
        """

    @property
    def layer(self) -> str:
        """Which matrix is read: X, the name of a layer, 'raw', or the format's own name for it."""

    @property
    def layers(self) -> list[str]:
        """The values that `layer` may have for this file."""

    @property
    def anndata_layer(self) -> str | None:
        """The key of `AnnData.layers` that holds the counts; None if they are in X or raw, or it is not an AnnData."""

    @property
    def shuffled(self) -> bool:
        """Whether its cells were shuffled as a whole when it was written."""

    @property
    def spooled(self) -> bool:
        """Whether the first read sorts all entries by row on disk, which each process would have to do."""

    @property
    def notes(self) -> list[str]:
        """Choices and assumptions made on opening that the user must see, a sentence each."""

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes as CSR of the stored dtype.

        Indices are sorted, duplicates summed, zeros left out; whether values are counts is not checked.
        Raises SourceError where the file turns out to be damaged.
        """

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """These rows as checked counts in the dtypes of a minibatch (uint8, uint16), without the library if possible.

        Returns None where values or layout are irregular: then the caller uses `read_counts`, which corrects or reports
        it. Raises SourceError where the file turns out to be damaged.
        """

    def ask_ahead(self, start: int, stop: int) -> object:
        """Begin to read from a bucket what `read_narrow` will need; what is returned must be kept until then.

        Raises SourceError, StorageError where that is damaged or can't be read.
        """

    def count_run_cells(self) -> int:
        """Number of cells that is best read at a time with `read_narrow`, beginning at multiples of this number."""

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, the cell names (str) as index.

        Every slice has the same columns, dtypes and categories, also `read_obs(0, 0)`.
        Raises SourceError where the file turns out to be damaged.
        """

    def close(self) -> None:
        """Close the files and remove temporary ones; nothing can be read afterwards."""
