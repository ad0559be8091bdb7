"""The protocol of a source: the cells of one file or folder of counts, whatever its format, by slices of rows."""

from typing import Protocol, runtime_checkable

import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec


@runtime_checkable
class Source(Protocol):
    """Cells of one file or folder: counts and `obs` by slices of rows, genes at once.

    Every format implements all of it; a source made of others delegates to them. Rows are the numbers of cells,
    0 <= start <= stop <= n_cells. All reads may be made by several threads at once.
    Memory is bounded by what a call returns, plus `var`, plus about 200 MiB, whatever the size of the file.
    """

    var: pd.DataFrame
    """[genes] rows; the index holds the gene names: str, unique, none missing (`open_source` sees to it)."""

    @property
    def spec(self) -> DataSpec:
        """The path and the options that it was opened with; what was None there was chosen on opening."""

    @property
    def path(self) -> str:
        """Where it is, as the user gave it: what errors and `obs['source']` call it."""

    @property
    def n_cells(self) -> int:
        """Rows."""

    @property
    def nnz(self) -> int | None:
        """Stored entries where these are known without a pass over the data, else None.

        Explicit zeros, duplicates and features that are left out are among them.
        """

    @property
    def layer(self) -> str:
        """Which matrix is read: X, the name of a layer, 'raw', or what the format has instead."""

    @property
    def layers(self) -> list[str]:
        """What `layer` may be in this file."""

    @property
    def anndata_layer(self) -> str | None:
        """The key of `AnnData.layers` that the counts are in; None where they are in X or raw, or it is no AnnData."""

    @property
    def shuffled(self) -> bool:
        """Whether its cells were put in random order as a whole when it was written."""

    @property
    def spooled(self) -> bool:
        """Whether the first read sorts all entries into rows on disk, which each process would do for itself."""

    @property
    def notes(self) -> list[str]:
        """What was chosen or assumed on opening and a user should know, a sentence each."""

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes as CSR of the stored number type.

        Indices are sorted, duplicates summed, zeros left out; whether values are counts is not checked.
        Raises SourceError where the file turns out to be damaged.
        """

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """The same rows as checked counts in the types of a minibatch (uint8 or uint16), past the library where it can.

        None where anything about them or their layout is unusual: then the caller asks `read_counts`, which puts it
        right or says what is wrong. Raises SourceError where the file turns out to be damaged.
        """

    def count_run_cells(self) -> int:
        """How many cells `read_narrow` is best asked for at a time, from a multiple of this number on."""

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, index the cell names (str).

        Every slice has the same columns, types and categories, also `read_obs(0, 0)`.
        Raises SourceError where the file turns out to be damaged.
        """

    def close(self) -> None:
        """Close the files and remove temporary ones; nothing can be read afterwards."""
