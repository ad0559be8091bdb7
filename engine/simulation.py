"""Simulate an atlas: counts drawn from a known scVI-like process, with the truth written beside them.

The process, for a cell c of type t in batch b and a gene g:

    profile[g, t]   softmax over genes of base[g] + deviation[g, t] + marker[g, t]          (varm["type_profiles"])
    effect[g, b]    exp(normal): factor of the batch on the gene                            (varm["batch_effects"])
    state[c, k]     standard normal: activity of each of a few programs in the cell         (obsm["state"])
    program[g, k]   normal: effect of a program on the gene's logarithm                     (varm["programs"])
    rate[c, g]      profile[g, t] * effect[g, b] * exp(state[c] . program[g]), scaled to sum to 1 over genes
    library[c]      log-normal around its batch's median                                    (obs["library"])
    theta[g]        log-normal: inverse dispersion                                          (var["theta"])
    count[c, g]     negative binomial of mean library[c] * rate[c, g] and variance mean + mean**2 / theta[g]

Medians and spreads are those of droplet data: with 1,000 to 3,000 genes about nine counts in ten are zero (with 20,000
genes 19 in 20), more than half of the others are one, a few exceed a byte, and some genes have no counts at all.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from atlasvi.loaders.errors import AtlasviError
from atlasvi.loaders.outputs import write_file_aside
from atlasvi.loaders.tables.frames import make_names

BLOCK_ENTRIES = 1 << 21  # matrix entries drawn at once: 16 MB in float64; another size draws other counts
N_PROGRAMS = 3  # variation of the cells within a type, besides noise
WALK_MEAN = 8.0  # means up to here are drawn by inversion, larger ones as gamma-Poisson


class SimulationError(AtlasviError, ValueError):
    """An atlas of this shape or with these settings can't be simulated."""


@dataclass(frozen=True)
class Process:
    """Settings of the simulation; spreads are standard deviations of natural logarithms."""

    median_library: float | None = None  # counts per cell; None: 500 for 1,000 genes, growing as genes**0.6
    library_spread: float = 0.4  # over the cells of a batch
    batch_library_spread: float = 0.3  # over the medians of the batches
    base_spread: float = 2.1  # over genes, of their base level
    type_spread: float = 0.5  # over genes, of a type's deviation from the base
    marker_share: float = 0.03  # proportion of genes that are markers of a type
    marker_fold: float = 2.0  # natural logarithm of a marker's median fold change
    program_spread: float = 0.2  # of a program's effect on a gene
    batch_spread: float = 0.3  # of a batch's effect on a gene
    median_theta: float = 1.0
    theta_spread: float = 1.0


@dataclass(frozen=True)
class Truth:
    """The parameters that the counts are drawn from; all are float64 except `markers`."""

    profiles: np.ndarray  # [types, genes], each row sums to one
    markers: np.ndarray  # bool [types, genes]
    effects: np.ndarray  # [batches, genes], factors
    programs: np.ndarray  # [N_PROGRAMS, genes], natural logarithms
    theta: np.ndarray  # [genes]
    compositions: np.ndarray  # [batches, types], each row sums to one
    batch_library: np.ndarray  # [batches], median counts per cell
    batch_starts: np.ndarray  # int64 [batches + 1]: batch b is the cells [batch_starts[b], batch_starts[b + 1])


def simulate(
    out: str | Path,
    n_cells: int,
    n_genes: int,
    n_batches: int,
    n_types: int,
    seed: int,
    *,
    process: Process | None = None,
) -> None:
    """Write an .h5ad of `n_cells` x `n_genes` simulated counts: CSR, float32 data, int32 indices, not compressed.

    Batches lie one after the other, as in files joined from samples; each has its own mixture of types. Every batch
    and every type has at least one cell, and every cell at least one count: an empty cell gets one count of a gene
    drawn by its rate.
    obs   batch ("batch_0", ...), cell_type ("type_00", ...), library (the true one), counts
    var   theta, marker_of (a type, or missing)
    obsm  state [cells, 3]
    varm  type_profiles [genes, types], batch_effects [genes, batches], programs [genes, 3]
    uns   simulation: seed and settings, compositions [batches, types], batch_library [batches]
    The content depends only on the arguments: cells are drawn and written in blocks of fixed size, each with its own
    random stream, so memory depends on the numbers of cells and genes only through the true parameters.

    Raises SimulationError for an impossible shape, OutputError if `out` exists or can't be written; a file that was
    there before is then unchanged.
    """
    process = process or Process()
    check_shape(n_cells, n_genes, n_batches, n_types, seed, process)
    truth = draw_truth(n_cells, n_genes, n_batches, n_types, seed, process)

    with write_file_aside(out) as aside, open(aside, "w+b", buffering=0) as disk:
        sink = Sink(disk)
        with h5py.File(sink, "w") as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            write_truth(file, truth, seed, process)
            write_cells(file, truth, sink.while_good(draw_blocks(truth, seed, process)))
        sink.check()


class Sink:
    """A file for HDF5 that remembers the first error and lets the library close normally: on a full disk, HDF5 would
    otherwise print a page of errors and end the process.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.seek, self.tell, self.readinto = file.seek, file.tell, file.readinto  # type: ignore[attr-defined]
        self.flush, self.read, self.truncate = file.flush, file.read, file.truncate

    def write(self, content: bytes) -> int:
        """Write all of it; after an error write nothing more."""
        rest = memoryview(content).cast("B")
        try:
            while self._error is None and len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error = error
        return len(content)

    def check(self) -> None:
        """Raises the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def while_good(self, blocks: Iterator["Cells"]) -> Iterator["Cells"]:
        """Yield the blocks until there is an error."""
        for block in blocks:
            self.check()
            yield block


def check_shape(n_cells: int, n_genes: int, n_batches: int, n_types: int, seed: int, process: Process) -> None:
    """Raise SimulationError, in one sentence, if an atlas of this shape and with these settings is impossible."""
    for name, number in [("cells", n_cells), ("genes", n_genes), ("batches", n_batches), ("types", n_types)]:
        if number < 1:
            raise SimulationError(f"simulate: {number} {name} are too few: there must be at least one.")
        if name in ("batches", "types") and number > n_cells:
            raise SimulationError(f"simulate: {number} {name} do not fit in {n_cells} cells: simulate more cells.")
    if seed < 0:
        raise SimulationError(f"simulate: the seed {seed} is negative: use a whole number from 0 up.")
    for name, value in asdict(process).items():
        if value is None:
            continue
        if not np.isfinite(value) or value < 0 or (value == 0 and name.startswith("median_")):
            raise SimulationError(f"simulate: {name} is {value}: use a positive number (a spread may be 0).")


def draw_truth(n_cells: int, n_genes: int, n_batches: int, n_types: int, seed: int, process: Process) -> Truth:
    """Draw the parameters that all cells have in common."""
    rng = np.random.default_rng([seed, 0])
    markers = np.zeros((n_types, n_genes), dtype=bool)
    n_markers = max(1, round(process.marker_share * n_genes))
    for row in markers:
        row[rng.choice(n_genes, n_markers, replace=False)] = True
    log_profiles = rng.normal(0, process.base_spread, n_genes) + rng.normal(0, process.type_spread, (n_types, n_genes))
    log_profiles[markers] += rng.normal(process.marker_fold, 0.5, markers.sum())
    profiles = np.exp(log_profiles - log_profiles.max(axis=1, keepdims=True))
    median_library = process.median_library or 500 * (n_genes / 1000) ** 0.6
    proportions = rng.dirichlet(np.full(n_batches, 10.0))  # batches differ in size, but not by orders of magnitude
    # Each batch gets one cell first; the others follow the proportions.
    starts = np.round(np.concatenate([[0.0], np.cumsum(proportions)]) * (n_cells - n_batches)).astype(np.int64)
    starts[-1] = n_cells - n_batches
    shifts = rng.normal(0, process.batch_library_spread, n_batches)
    shifts -= proportions @ shifts  # the median over the whole atlas stays, however few its batches
    return Truth(
        profiles=profiles / profiles.sum(axis=1, keepdims=True),
        markers=markers,
        effects=np.exp(rng.normal(0, process.batch_spread, (n_batches, n_genes))),
        programs=rng.normal(0, process.program_spread, (N_PROGRAMS, n_genes)),
        theta=process.median_theta * np.exp(rng.normal(0, process.theta_spread, n_genes)),
        compositions=rng.dirichlet(np.full(n_types, 2.0), size=n_batches),
        batch_library=median_library * np.exp(shifts),
        batch_starts=starts + np.arange(n_batches + 1),
    )


@dataclass(frozen=True)
class Cells:
    """One block of cells: their counts and true parameters."""

    counts: sp.csr_matrix  # float32 [cells, genes]
    batches: np.ndarray  # int64 [cells]
    types: np.ndarray  # int64 [cells]
    library: np.ndarray  # float64 [cells]
    state: np.ndarray  # float64 [cells, N_PROGRAMS]


def draw_blocks(truth: Truth, seed: int, process: Process) -> Iterator[Cells]:
    """Draw the atlas, in order, in blocks of `BLOCK_ENTRIES` matrix entries."""
    n_types, n_genes = truth.profiles.shape
    n_cells = int(truth.batch_starts[-1])
    block = max(1, BLOCK_ENTRIES // max(n_genes, 256))  # with few genes, the columns of obs take space too
    # So that every type occurs: type t goes to the cell in the middle of the t-th of n_types equal parts.
    first_cells = (np.arange(n_types) * 2 + 1) * n_cells // (2 * n_types)
    for number, start in enumerate(range(0, n_cells, block)):
        rng = np.random.default_rng([seed, 1, number])
        cells = np.arange(start, min(start + block, n_cells))
        batches = np.searchsorted(truth.batch_starts, cells, side="right") - 1
        cumulative = np.cumsum(truth.compositions, axis=1)[batches]
        types = (rng.random(len(cells))[:, None] > cumulative[:, :-1]).sum(axis=1)
        here = (first_cells >= start) & (first_cells <= cells[-1])
        types[first_cells[here] - start] = np.flatnonzero(here)
        library = truth.batch_library[batches] * np.exp(rng.normal(0, process.library_spread, len(cells)))
        state = rng.standard_normal((len(cells), N_PROGRAMS))
        counts = draw_counts(expect_counts(truth, batches, types, library, state), truth.theta, rng)
        yield Cells(counts, batches, types, library, state)


def expect_counts(
    truth: Truth, batches: np.ndarray, types: np.ndarray, library: np.ndarray, state: np.ndarray
) -> np.ndarray:
    """Expected counts of the cells of a block, float64 [cells, genes]."""
    n_types = len(truth.profiles)
    kinds, kind = np.unique(batches * n_types + types, return_inverse=True)
    mean = (np.log(truth.profiles[kinds % n_types]) + np.log(truth.effects[kinds // n_types]))[kind]
    mean += state @ truth.programs
    np.exp(mean, out=mean)
    mean *= (library / mean.sum(axis=1))[:, None]
    return mean


def draw_counts(mean: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Draw the counts of some cells, float32 CSR; mean float64 [cells, genes], theta float64 [genes].

    A count is above zero with probability 1 - (1 + mean / theta)**-theta, which is below the mean: comparing a cheap
    float32 uniform with the mean rules out most entries, and only the others need the exact draw.
    """
    n_cells, n_genes = mean.shape
    coarse = rng.random((n_cells, n_genes), dtype=np.float32)  # multiples of 2**-24
    passed = np.flatnonzero(coarse < mean)
    uniform = coarse.ravel()[passed] + rng.random(len(passed)) * 2.0**-24  # the bits that float32 lacks
    cells, genes = np.divmod(passed, n_genes)
    values = draw_negative_binomial(mean.ravel()[passed], theta[genes], uniform, rng)
    positive = values > 0
    cells, genes, values = cells[positive], genes[positive], values[positive]

    totals = np.bincount(cells, minlength=n_cells)
    for cell in np.flatnonzero(totals == 0):
        at = np.searchsorted(cells, cell)
        gene = rng.choice(n_genes, p=mean[cell] / mean[cell].sum())
        cells, genes, values = np.insert(cells, at, cell), np.insert(genes, at, gene), np.insert(values, at, 1)
        totals[cell] = 1
    indptr = np.concatenate([[0], np.cumsum(totals)])
    return sp.csr_matrix((values.astype(np.float32), genes.astype(np.int32), indptr), shape=mean.shape)


def draw_negative_binomial(
    mean: np.ndarray, theta: np.ndarray, uniform: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw int64 [n] counts of a negative binomial, variance = mean + mean**2 / theta, exact to float64 rounding.

    mean, theta  float64 [n], > 0
    uniform      float64 [n] in [0, 1): the count is the number of k >= 0 with uniform < P(count > k)
    Where the mean is above WALK_MEAN, `uniform` is not used: the count is Poisson of a gamma drawn from `rng`.
    """
    counts = np.zeros(len(mean), dtype=np.int64)
    large = mean > WALK_MEAN
    counts[large] = rng.poisson(rng.standard_gamma(theta[large]) * (mean[large] / theta[large]))

    at = np.flatnonzero(~large)
    mean, theta, uniform = mean[at], theta[at], uniform[at]
    log_none = -theta * np.log1p(mean / theta)
    above = -np.expm1(log_none)  # P(count > k), from k = 0
    here = np.exp(log_none)  # P(count = k)
    factor = mean / (mean + theta)
    k = 0
    while True:
        # Below 1e-18 a step no longer changes `above`, because of rounding: stop there.
        on = np.flatnonzero((uniform < above) & (here > 1e-18))
        if len(on) == 0:
            return counts
        at, theta, uniform, above, here, factor = (a[on] for a in (at, theta, uniform, above, here, factor))
        counts[at] += 1
        k += 1
        here *= (theta + (k - 1)) * factor / k
        above -= here


def write_truth(file: h5py.File, truth: Truth, seed: int, process: Process) -> None:
    """Write all of the AnnData file except `X`, `obs` and `obsm`."""
    n_types, n_genes = truth.profiles.shape
    marker_of = pd.Categorical.from_codes(
        np.where(truth.markers.any(axis=0), truth.markers.argmax(axis=0), -1),
        categories=make_names(type_names(n_types)),
    )
    genes = make_names(number_names("gene_", n_genes))
    write_elem(file, "var", pd.DataFrame({"theta": truth.theta, "marker_of": marker_of}, index=genes))
    varm = {"type_profiles": truth.profiles.T, "batch_effects": truth.effects.T, "programs": truth.programs.T}
    write_elem(file, "varm", varm)
    settings = {name: value for name, value in asdict(process).items() if value is not None}
    simulation: dict[str, Any] = {"seed": seed, **settings}
    simulation |= {"compositions": truth.compositions, "batch_library": truth.batch_library}
    write_elem(file, "uns", {"simulation": simulation})
    for name in ("layers", "obsp", "varp"):
        write_elem(file, name, {})


def write_cells(file: h5py.File, truth: Truth, blocks: Iterator[Cells]) -> None:
    """Write `X`, `obs` and `obsm` as AnnData encodes them, in blocks, so that no whole column is in memory."""
    n_types, n_genes = truth.profiles.shape
    n_cells, n_batches = int(truth.batch_starts[-1]), len(truth.effects)
    matrix = file.create_group("X")
    matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})
    data = matrix.create_dataset("data", (0,), np.float32, maxshape=(None,), chunks=(1 << 18,))
    indices = matrix.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=(1 << 18,))
    # indptr has the dtype of the indices if it fits: scipy fails on the mixture that anndata reads (1.17: tocoo).
    indptr = matrix.create_dataset("indptr", (n_cells + 1,), np.int32 if n_cells * n_genes < 2**31 else np.int64)
    obs = file.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    obs.attrs["column-order"] = np.array(["batch", "cell_type", "library"], dtype=h5py.string_dtype())
    names = create_column(obs, "_index", n_cells, h5py.string_dtype(), "string-array")
    batch = create_categorical(obs, "batch", n_cells, number_names("batch_", n_batches))
    cell_type = create_categorical(obs, "cell_type", n_cells, type_names(n_types))
    library = create_column(obs, "library", n_cells, np.dtype(np.float64), "array")
    write_elem(file, "obsm", {})
    state = file["obsm"].create_dataset("state", (n_cells, N_PROGRAMS), np.float64)
    state.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    start = nnz = 0
    for cells in blocks:
        stop, end = start + cells.counts.shape[0], nnz + cells.counts.nnz
        data.resize((end,))
        indices.resize((end,))
        data[nnz:end] = cells.counts.data
        indices[nnz:end] = cells.counts.indices
        indptr[start + 1 : stop + 1] = nnz + cells.counts.indptr[1:].astype(np.int64)
        names[start:stop] = number_names("cell_", n_cells, start, stop)
        batch[start:stop] = cells.batches
        cell_type[start:stop] = cells.types
        library[start:stop] = cells.library
        state[start:stop] = cells.state
        start, nnz = stop, end


def create_column(group: h5py.Group, name: str, n_rows: int, dtype: np.dtype, encoding: str) -> h5py.Dataset:
    """Create an empty array with AnnData's attributes."""
    column = group.create_dataset(name, (n_rows,), dtype)
    column.attrs.update({"encoding-type": encoding, "encoding-version": "0.2.0"})
    return column


def create_categorical(group: h5py.Group, name: str, n_rows: int, categories: list[str]) -> h5py.Dataset:
    """Create an empty categorical column; return its codes, to be written."""
    column = group.create_group(name)
    column.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    write_elem(column, "categories", np.array(categories, dtype=object))
    return create_column(column, "codes", n_rows, np.min_scalar_type(-len(categories)), "array")


def number_names(prefix: str, n_names: int, start: int = 0, stop: int | None = None) -> list[str]:
    """Names `prefix` + number for [start, stop) of `n_names`, zero-padded to one length so that they sort in order."""
    width = len(str(n_names - 1))
    return [f"{prefix}{number:0{width}d}" for number in range(start, n_names if stop is None else stop)]


def type_names(n_types: int) -> list[str]:
    """Names of cell types: at least two digits."""
    return number_names("type_", max(n_types, 11))[:n_types]
