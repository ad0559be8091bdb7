"""Questions to a minified store, answered slice by slice: memory does not grow with the atlas."""

import difflib
import gzip
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import pandas as pd
import torch

from atlasvi.engine.minified.minified_by_scvi_tools import ScviMinified
from atlasvi.engine.minified.minified_store import LIBRARY, MinifiedStore
from atlasvi.engine.model.covariates import find_categories, to_category
from atlasvi.engine.terminal import make_printable
from atlasvi.loaders.errors import AtlasviError, GeneError
from atlasvi.loaders.outputs import write_file_aside

if TYPE_CHECKING:
    from atlasvi.engine.model.vae import VAE

SLICE_CELLS = 2**14
DECODE_CELLS = 2**10
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


Minified = MinifiedStore | ScviMinified


class QueryError(AtlasviError, ValueError):
    """A question that the store can't answer as it was put."""


def choose_cells(
    store: Minified, names: Sequence[str] | None = None, where: Sequence[str] = (), limit: int | None = None
) -> np.ndarray:
    """int64 numbers of the cells asked for, in the order of the store.

    names   cell names; None means all
    where   conditions COLUMN=VALUE on obs, all of which must hold; VALUE may be several, separated by commas
    limit   at most so many, the first ones
    Raises ColumnError or QueryError if a column, a value or a name is not there.
    """
    chosen = np.ones(store.n_cells, bool)
    for condition in where:
        column, equals, wanted = condition.partition("=")
        if not equals:
            raise QueryError(f"--where {condition}: write it as COLUMN=VALUE.")
        codes, values = pd.factorize(store.obs.read_column(column))
        there = [to_category(value) for value in values]
        # the whole text first: a value may hold a comma of its own
        accepted = [wanted] if wanted in map(str, there) else [value.strip() for value in wanted.split(",")]
        places = find_categories(there, accepted)
        if None in places:
            raise QueryError(
                f"{store.path}: no cell has {column} = {accepted[places.index(None)]!r} (there are: "
                f"{_some(sorted(map(str, there)))})."
            )
        chosen &= np.isin(codes, np.array(places, np.int64))
    if names is not None:
        chosen &= _find_names(store, names)
    return np.flatnonzero(chosen)[:limit]


def _find_names(store: Minified, names: Sequence[str]) -> np.ndarray:
    wanted, found, mask = set(names), set(), np.zeros(store.n_cells, bool)
    for start in range(0, store.n_cells, SLICE_CELLS):
        here = store.obs.read_names(start, min(start + SLICE_CELLS, store.n_cells))
        hits = here.isin(wanted)
        mask[start : start + len(here)] = hits
        found.update(here[hits])
    if missing := wanted - found:
        raise QueryError(f"{store.path}: {len(missing)} of the cells are not there (first: {sorted(missing)[0]!r}).")
    return mask


def read_latent(store: Minified, cells: np.ndarray | None = None) -> Iterator[tuple[pd.Index, np.ndarray, np.ndarray]]:
    """Slices of (cell names, qzm, qzv) of the cells asked for (all if None), in the order of the store."""
    for start, inside in _slices(store.n_cells, cells):
        qzm, qzv = store.read_latent(start, start + SLICE_CELLS)
        yield store.obs.read_names(start, start + SLICE_CELLS)[inside], qzm[inside], qzv[inside]


def read_expression(
    store: Minified,
    genes: Sequence[str] | None = None,
    cells: np.ndarray | None = None,
    library_size: float | str = 1.0,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    """Slices of (cell names, decoded expression float32 [cells, genes]) at the posterior mean of each cell.

    genes         names; None means all of the model
    library_size  1 gives proportions (all genes sum to 1), another number that many counts a cell, 'observed' the
                  cell's own library (its size factor, if the model has one): the expected counts
    Raises GeneError if a gene is not there, QueryError for another library size.
    """
    columns = find_genes(store, genes)
    if library_size != "observed":
        try:
            size = float(library_size)
        except ValueError:
            size = np.nan
        if not 0 < size < np.inf:
            raise QueryError(
                f"library size {library_size!r}: give a number, or 'observed'; numbers are finite and above 0."
            )
        library_size = size
    # at once, not with the first slice: what is missing is said before anything of the answer is written
    codes = {name: torch.from_numpy(values) for name, values in store.setup.read_codes(store).items()}
    return _decode(store, store.model(), codes, columns, cells, library_size)


def _decode(
    store: Minified,
    model: "VAE",
    codes: dict[str, torch.Tensor],
    columns: np.ndarray,
    cells: np.ndarray | None,
    library_size: float | str,
) -> Iterator[tuple[pd.Index, np.ndarray]]:
    for start, inside in _slices(store.n_cells, cells):
        qzm, _ = store.read_latent(start, start + SLICE_CELLS)
        obs = store.obs.read(start, start + SLICE_CELLS)
        numbers = np.arange(start, start + len(obs))[inside]
        library = obs[LIBRARY].to_numpy(np.float32)[inside]
        if library_size != "observed":
            library = np.full(len(numbers), float(library_size), np.float32)
        elif "size_factor" in codes:
            library = codes["size_factor"][numbers].numpy()
        z = torch.from_numpy(qzm[inside])
        out = np.empty((len(numbers), len(columns)), np.float32)
        with torch.inference_mode():
            for at in range(0, len(numbers), DECODE_CELLS):
                part = slice(at, at + DECODE_CELLS)
                here = {name: values[numbers[part]] for name, values in codes.items()}
                proportions = model.shares(model.to_latent(z[part]), here)
                out[part] = proportions[:, columns].numpy() * library[part, None]
        yield obs.index[inside], out


def find_genes(store: Minified, genes: Sequence[str] | None) -> np.ndarray:
    """int64 columns of the named genes (all if None). Raises GeneError, naming near ones, if one is not there."""
    if genes is None:
        return np.arange(len(store.genes))
    columns = store.genes.get_indexer(pd.Index(genes))
    if (columns < 0).any():
        missing = genes[int(np.flatnonzero(columns < 0)[0])]
        near = difflib.get_close_matches(missing, list(store.genes), 3)
        hint = f"near ones: {', '.join(near)}" if near else f"it has {len(store.genes):,}: {_some(list(store.genes))}"
        raise GeneError(f"{store.path}: no gene {missing!r} in the model ({hint}).")
    return columns


def _slices(n_cells: int, cells: np.ndarray | None) -> Iterator[tuple[int, np.ndarray | slice]]:
    """(start, which rows of [start, start + SLICE_CELLS)) for the slices that hold cells asked for."""
    for start in range(0, n_cells, SLICE_CELLS):
        if cells is None:
            yield start, slice(None)
        else:
            low, high = np.searchsorted(cells, [start, start + SLICE_CELLS])
            if high > low:
                yield start, cells[low:high] - start


def _some(values: Sequence[str], n: int = 8) -> str:
    return ", ".join(map(str, values[:n])) + (", ..." if len(values) > n else "")


def write_table(
    slices: Iterator[tuple[pd.Index, np.ndarray]], columns: Sequence[str], out: Path | None, *, precision: int = 6
) -> int:
    """Write slices of (cell names, values [cells, columns]) to a file, or to standard output as CSV; returns the rows.

    out  .csv or .tsv (streamed; .gz too), or .npz with `cells`, `columns`, `values`
    In text, names that a spreadsheet would run as formulas are guarded (see `guard_formula`); .npz has them unchanged.
    Raises QueryError for another ending, OutputError if `out` exists or can't be written.
    """
    if out is None:
        # a pipe or a file gets names as they are, a terminal none that would steer it
        show = make_printable if sys.stdout is not None and sys.stdout.isatty() else str
        return _write_lines(sys.stdout or io.StringIO(), ",", slices, columns, precision, show)
    if not any(ending in out.suffixes for ending in (".csv", ".tsv", ".npz")):
        raise QueryError(f"{out}: write to a file that ends in .csv, .tsv (or either with .gz) or .npz.")
    with write_file_aside(out) as temporary:
        if out.suffix == ".npz":
            parts = list(slices)
            values = np.concatenate([part for _, part in parts]) if parts else np.empty((0, len(columns)), np.float32)
            names = np.array([str(name) for index, _ in parts for name in index], str)
            with open(temporary, "wb") as archive:
                np.savez_compressed(archive, cells=names, columns=np.array(columns, str), values=values)
            return len(values)
        delimiter = "\t" if ".tsv" in out.suffixes else ","
        with (gzip.open if out.suffix == ".gz" else open)(temporary, "wt", encoding="utf-8", newline="") as file:
            return _write_lines(file, delimiter, slices, columns, precision, str)


def _write_lines(
    file: TextIO,
    delimiter: str,
    slices: Iterator[tuple[pd.Index, np.ndarray]],
    columns: Sequence[str],
    precision: int,
    show: Callable[[str], str],
) -> int:
    """Write the table, names as `show` makes them; returns the rows."""

    def name(text: object) -> str:
        shown = guard_formula(show(str(text)))
        # csv.writer leaves a carriage return outside of quotes before Python 3.13, and readers begin a new row there
        quoted = any(special in shown for special in (delimiter, '"', "\r", "\n"))
        return '"' + shown.replace('"', '""') + '"' if quoted else shown

    rows = 0
    file.write(delimiter.join(["cell", *map(name, columns)]) + "\n")
    for names, values in slices:
        for cell, row in zip(names, values):
            file.write(delimiter.join([name(cell), *(f"{value:.{precision}g}" for value in row)]) + "\n")
        rows += len(names)
    return rows


def guard_formula(text: str) -> str:
    """`text` for a cell of a CSV file, an apostrophe before it where a spreadsheet would run it as a formula.

    Excel and LibreOffice take what begins with = + - @, a tab or a line break for one (also in full-width letters), and
    a formula can send out what the other cells hold; after an apostrophe it is text. Numbers are left as they are.
    """
    if not text.startswith(FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
