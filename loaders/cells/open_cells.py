"""Opens cells from a cell store or a source, and selects the genes of a model from them."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.cells.cell_views import AddedColumn, SelectedGenes, unwrap
from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.cells.source_cells import SourceCells
from atlasvi.loaders.errors import AtlasviWarning, GeneError, SourceError
from atlasvi.loaders.sources.data_spec import DataSpec, parse_source
from atlasvi.loaders.sources.open_source import open_spec, recognise
from atlasvi.loaders.store_files import is_cell_store

CellData = Cells  # its former name, which other code may use
LEAST_SHARE = 0.8  # of the model's genes; scvi-tools warns below this too

log = logging.getLogger(__name__)


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
    Raises SourceError if the data can't be opened (an AnnData in memory, for one), or if an option does not apply to a
    cell store.
    """
    options = {"layer": layer, "gene_column": gene_column, "measurement": measurement}
    spec = parse_source(data, **options, empty_cells=empty_cells, values=values)
    if like is not None:
        spec = spec.reach_like(like)
    if is_cell_store(spec.place):
        missing_genes = spec.missing_genes or (like.missing_genes if like is not None else None)
        return CellStore(spec.path, replace(spec, missing_genes=missing_genes))
    spec = spec.fill_from(like or DataSpec(spec.path), recognise(spec.path, spec.place))
    if spec.empty_cells == "drop":
        raise SourceError(f"{spec.path}: only ingest drops cells without counts: keep them, or ingest it first.")
    return SourceCells(open_spec(spec))


def enter_cells(data: Cells | DataSpec | str | Path, opened: ExitStack, like: DataSpec | None = None) -> Cells:
    """Data that is opened, as it is; else as `open_cells` opens it, closed with `opened`. Raises as `open_cells`."""
    return data if isinstance(data, Cells) else opened.enter_context(closing(open_cells(data, like=like)))


def select_genes(data: Cells, genes: Sequence[str]) -> Cells:
    """`data` with only these genes, in this order.

    Raises GeneError, naming the first, if some are missing, unless the data was opened with missing_genes=zeros.
    """
    wanted = pd.Index(genes)
    if wanted.equals(data.genes):
        return data
    if data.spec.missing_genes == "zeros":
        return align_genes(data, genes)
    if missing := wanted[~wanted.isin(data.genes)].tolist():
        raise GeneError(
            f"{data.path}: {len(missing)} of the {len(wanted):,} genes of the model are not there "
            f"(first: {missing[0]!r}): give the data that the model was trained on, or, if its genes have other "
            "names, choose the column of var with the model's names: PATH::gene_column=NAME."
        )
    return SelectedGenes(data, wanted)


def align_genes(data: Cells, genes: Sequence[str]) -> Cells:
    """`data` with only these genes, in this order; genes that it lacks have zero counts, and a warning says how many.

    Raises GeneError if its genes have other names than these (see `find_missing`).
    """
    wanted = pd.Index(genes)
    if wanted.equals(data.genes):
        return data
    report_genes(data.path, len(wanted), find_missing(data.path, data.genes, wanted))
    return SelectedGenes(data, wanted)


def find_missing(path: str, there: pd.Index, wanted: pd.Index) -> list[str]:
    """The `wanted` genes that the data lacks; `there` are its genes.

    Raises GeneError if the data names its genes in another way: it has none of them, or most are found only if upper
    and lower case (CD3E of humans, Cd3e of mice), or versions of Ensembl ids, make no difference.
    """
    missing = wanted[~wanted.isin(there)].tolist()
    n_found, n_alike = len(wanted) - len(missing), 0
    if missing:
        n_alike = int(_simplify(wanted).isin(_simplify(there)).sum())
    if n_found == 0 or n_alike > 2 * n_found:
        found = f"{n_found:,}" if n_found else "none"
        alike = f", and {n_alike:,} if case and versions made no difference" if n_alike else ""
        raise GeneError(
            f"{path}: it has {found} of the {len(wanted):,} genes of the model{alike} (the model: "
            f"{', '.join(map(str, wanted[:2]))}; the data: {', '.join(map(str, there[:2]))}): name its genes as the "
            "model does (PATH::gene_column=NAME chooses another column of var, PATH::gene_versions=drop removes "
            "versions), and genes of another species by their orthologues."
        )
    return missing


def _simplify(names: pd.Index) -> pd.Index:
    """Names of genes in lower case, Ensembl ids without their version."""
    return names.astype(str).str.lower().str.replace(r"^(ens[a-z]*\d+)\.\d+$", r"\1", regex=True)


def report_genes(path: str, n_genes: int, missing: Sequence[str]) -> None:
    """Log which proportion of a model's genes the data has, and warn if some are missing."""
    share = 1 - len(missing) / n_genes
    log.info("%s: %.1f%% of the %d genes of the model are in the data", path, 100 * share, n_genes)
    if missing:
        poor = f" Below {LEAST_SHARE:.0%} the results may be poor." if share < LEAST_SHARE else ""
        warnings.warn(
            f"{path}: {share:.1%} of the {n_genes:,} genes of the model are in the data; the {len(missing):,} others "
            f"(first: {missing[0]!r}) count as zero in every cell.{poor}",
            AtlasviWarning,
            stacklevel=3,
        )


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
