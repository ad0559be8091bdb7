"""Cells seen through a list of genes, or with one more column of obs; all else is delegated to the original cells."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.rows.chosen_genes import GeneChoice
from atlasvi.loaders.sources.data_spec import DataSpec


class CellsView:
    """Every member of `Cells`, delegated to other cells; a view overrides what it changes."""

    def __init__(self, data: Cells) -> None:
        self._data = data

    @property
    def spec(self) -> DataSpec:
        """How the cells were opened."""
        return self._data.spec

    @property
    def layer(self) -> str | None:
        """The layer of an AnnData that the counts are in."""
        return self._data.layer

    @property
    def path(self) -> str:
        """Where the cells are."""
        return self._data.path

    @property
    def n_cells(self) -> int:
        """Cells."""
        return self._data.n_cells

    @property
    def var(self) -> pd.DataFrame:
        """One row per gene."""
        return self._data.var

    @property
    def genes(self) -> pd.Index:
        """Gene names, in the order of the columns."""
        return self.var.index

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns of obs."""
        return self._data.obs_columns

    @property
    def source_sizes(self) -> list[int]:
        """How many rows each source had."""
        return self._data.source_sizes

    @property
    def block_starts(self) -> np.ndarray:
        """int64 [blocks + 1]: where each block begins."""
        return self._data.block_starts

    @property
    def group_blocks(self) -> int:
        """How many blocks are mixed with each other."""
        return self._data.group_blocks

    @property
    def mixing(self) -> str:
        """How well cells are mixed when they are shuffled."""
        return self._data.mixing

    def read_block(self, block: int) -> Rows:
        """The counts of one block."""
        return self._data.read_block(block)

    def ask_ahead(self, block: int) -> object:
        """Begin to read what `read_block` will need."""
        return self._data.ask_ahead(block)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop)."""
        return self._data.read_obs(start, stop)

    def read_names(self, start: int = 0, stop: int | None = None) -> pd.Index:
        """Names of cells [start, stop), or of all."""
        return self._data.read_names(start, stop)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One `obs` column of cells [start, stop), or of all. Raises ColumnError, naming those that are there."""
        return self._data.read_column(name, start, stop)

    def split_keys(self, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: a hash of each cell's identity."""
        return self._data.split_keys(start, stop)

    def close(self) -> None:
        """Close the files."""
        self._data.close()


def unwrap(data: Cells) -> Cells:
    """The cells that a view, or a view of views, shows."""
    while isinstance(data, CellsView):
        data = data._data
    return data


class SelectedGenes(CellsView):
    """Only the genes of a list, as columns in its order; a gene that the data lacks has zero counts in every cell."""

    def __init__(self, data: Cells, genes: pd.Index) -> None:
        super().__init__(data)
        self._choice, self._var = GeneChoice(genes.get_indexer(data.genes), len(genes)), data.var.reindex(genes)
        self._lacks_genes = not genes.isin(data.genes).all()

    @property
    def spec(self) -> DataSpec:
        """How the cells were opened, and whether missing genes count as zeros, so that they can be opened so again."""
        return replace(self._data.spec, missing_genes="zeros") if self._lacks_genes else self._data.spec

    @property
    def var(self) -> pd.DataFrame:
        """One row for each gene of the list, with missing values for genes that the data lacks."""
        return self._var

    def read_block(self, block: int) -> Rows:
        """The counts of one block for the chosen genes."""
        return self._choice.apply(self._data.read_block(block))

    def allow_fractions(self) -> "SelectedGenes":
        """The same genes of the same cells, accepting values that are not whole."""
        return SelectedGenes(self._data.allow_fractions(), self.genes)


class AddedColumn(CellsView):
    """Cells with one more column of obs; values [n_cells], of any type."""

    def __init__(self, data: Cells, name: str, values: Sequence[Any]) -> None:
        super().__init__(data)
        self._name, self._values = name, pd.Series(values)

    @property
    def obs_columns(self) -> list[str]:
        """Names of the columns of obs, the added one last."""
        return [*self._data.obs_columns, self._name]

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """One `obs` column of cells [start, stop), or of all. Raises ColumnError, naming those of `data`."""
        if name != self._name:
            return self._data.read_column(name, start, stop)
        return self._values.iloc[start:stop].reset_index(drop=True)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """`obs` of cells [start, stop), with the added column."""
        return self._data.read_obs(start, stop).assign(**{self._name: self._values.iloc[start:stop].array})

    def allow_fractions(self) -> "AddedColumn":
        """The same column of the same cells, accepting values that are not whole."""
        return AddedColumn(self._data.allow_fractions(), self._name, self._values)
