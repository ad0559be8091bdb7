"""The protocol of cells, on which a model is trained: read in blocks of rows, from a store, a source or memory."""

from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec


class Columns(Protocol):
    """The part of `Cells` that concerns `obs` alone, which minified data implements too."""

    @property
    def path(self) -> str:
        """Path of the cells, or the name that errors use for them."""

    @property
    def n_cells(self) -> int:
        """Cells."""

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns of obs, in their order."""

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One column of obs of cells [start, stop), or of all, [stop - start]; its index begins with 0.

        Raises ColumnError, naming the columns that are there, if `name` is not one of them.
        """


class NamedColumns(Columns, Protocol):
    """obs: its columns and the names of the cells."""

    def read_names(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Names of cells [start, stop), str; without arguments those of all cells."""


@runtime_checkable
class Cells(NamedColumns, Protocol):
    """Cells x genes, read block by block.

    Cells [block_starts[b], block_starts[b + 1]) are block b. Everything that can be opened for training implements all
    of it; a view (fewer genes, one column more) delegates to the original cells what it does not change.
    Several threads may call all read methods at once.
    """

    @property
    def spec(self) -> DataSpec:
        """The path and the options that the data was opened with."""

    @property
    def layer(self) -> str | None:
        """The key of `AnnData.layers` that holds the counts; None if they are in X or raw, or it is not an AnnData."""

    @property
    def var(self) -> pd.DataFrame:
        """[genes] rows; the index holds the gene names."""

    @property
    def genes(self) -> pd.Index:
        """Names of the genes, str, unique, in the order of the columns of the counts."""

    @property
    def source_sizes(self) -> list[int]:
        """Number of rows of each source; in `obs`, 0 <= source_row < source_sizes[code of source]."""

    @property
    def block_starts(self) -> np.ndarray:
        """int64 [blocks + 1], from 0 to n_cells: where each block begins, and where the last ends."""

    @property
    def group_blocks(self) -> int:
        """Number of blocks that are in memory together and shuffled with each other; at least 1."""

    @property
    def mixing(self) -> str:
        """How well cells are mixed when they are shuffled, in a sentence."""

    def read_block(self, block: int) -> Rows:
        """The counts of one block: for each cell ascending gene indices, uint16 or int32, and counts above 0.

        Counts are unsigned integers, or floats only if the data was opened to accept them (see `allow_fractions`).
        Raises DamagedChunkError or SourceError if they are damaged, CountsError if they are not counts.
        """

    def ask_ahead(self, block: int) -> object:
        """Begin to read what `read_block` will need, where that takes long; keep what is returned until it is read."""

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop), `source` and `source_row` among its columns; the index holds the cell names."""

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: a hash of each cell's identity, the same from a store as from its source."""

    def allow_fractions(self) -> "Cells":
        """The same cells, accepting values that are not whole, as the normal likelihood does.

        A cell store holds counts, so nothing changes for it.
        """

    def close(self) -> None:
        """Close all open files."""
