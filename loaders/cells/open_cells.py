"""Opens cells from a cell store or a source, and selects the genes of a model from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.cells.cell_views import AddedColumn, SelectedGenes, unwrap
from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.cells.source_cells import SourceCells
from atlasvi.loaders.errors import GeneError, SourceError
from atlasvi.loaders.sources.data_spec import DataSpec, parse_source
from atlasvi.loaders.sources.open_source import open_spec, recognise
from atlasvi.loaders.store_files import is_cell_store

CellData = Cells  # its former name, which other code may use


def open_cells(
    data: DataSpec | str | Path,
    *,
    layer: str | None = None,
    gene_column: str | None = None,
    measurement: str | None = None,
    empty_cells: Literal["refuse", "keep"] | None = None,
    values: Literal["counts", "numbers"] | None = None,
    like: DataSpec | None = None,
) -> Cells:
    """Open a cell store or any source for training. The options are explained at `open_source` and `DataSpec`.

    like  how other data was opened: options that are not given here are taken from it, where they apply
    Raises SourceError if the data can't be opened, or if an option does not apply to a cell store.
    """
    options = {"layer": layer, "gene_column": gene_column, "measurement": measurement}
    spec = parse_source(data, **options, empty_cells=empty_cells, values=values)
    if is_cell_store(spec.path):
        return CellStore(spec.path, spec)
    spec = spec.fill_from(like or DataSpec(spec.path), recognise(spec.path))
    if spec.empty_cells == "drop":
        raise SourceError(f"{spec.path}: only ingest drops cells without counts: keep them, or ingest it first.")
    return SourceCells(open_spec(spec))


def select_genes(data: Cells, genes: Sequence[str]) -> Cells:
    """`data` with only these genes, in this order. Raises GeneError, naming the first, if some are missing."""
    wanted = pd.Index(genes)
    if wanted.equals(data.genes):
        return data
    if missing := wanted[~wanted.isin(data.genes)].tolist():
        raise GeneError(
            f"{data.path}: {len(missing)} of the {len(wanted):,} genes of the model are not there "
            f"(first: {missing[0]!r}): give the data that the model was trained on, or, if its genes have other "
            "names, choose the column of var with the model's names: PATH::gene_column=NAME."
        )
    return SelectedGenes(data, wanted)


def align_genes(data: Cells, genes: Sequence[str]) -> tuple[Cells, list[str]]:
    """`data` with only these genes, in this order, and a list of the genes that it lacks, whose counts are zero.

    Raises GeneError if it has none of the genes.
    """
    wanted = pd.Index(genes)
    missing = find_missing(data.path, data.genes, wanted)
    return (data if wanted.equals(data.genes) else SelectedGenes(data, wanted)), missing


def find_missing(path: str, there: pd.Index, wanted: pd.Index) -> list[str]:
    """The `wanted` genes that the data lacks; `there` are its genes. Raises GeneError if it has none of them."""
    missing = wanted[~wanted.isin(there)].tolist()
    if len(missing) == len(wanted):
        raise GeneError(
            f"{path}: it has none of the {len(wanted):,} genes of the model (the model: {', '.join(wanted[:2])}; the "
            f"data: {', '.join(map(str, there[:2]))}): name its genes as the model does."
        )
    return missing


def add_column(data: Cells, name: str, values: Sequence[Any]) -> Cells:
    """The same cells with one more column of obs, one value for each cell."""
    return AddedColumn(data, name, values)


def allow_fractions(data: Cells, allowed: bool = True) -> Cells:
    """The same cells, accepting values that are not whole if `allowed`."""
    return data.allow_fractions() if allowed else data


def hash_counts(data: Cells) -> str | None:
    """A hash of all counts of a cell store, without reading them; None for other data (see `CellStore.hash_counts`)."""
    store = unwrap(data)
    return store.hash_counts() if isinstance(store, CellStore) else None
