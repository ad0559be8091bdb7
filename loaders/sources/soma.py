"""TileDB-SOMA experiments: one X layer of one measurement, by slices of rows.

Rows are the cells of `obs` in the order of their soma_joinid; the ids have gaps where cells were deleted.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.arrays.matrices import DENSE_BYTES
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import MissingDependencyError, SourceError
from atlasvi.loaders.places.tiledb_options import find_tiledb_options, name_for_tiledb
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.csr import canonical_csr, csr_from_entries, to_numbers
from atlasvi.loaders.rows.entries import MOST_ROWS, EntryBlock
from atlasvi.loaders.rows.narrowing import VALUES
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.run_lengths import FEWEST_CELLS, choose_run
from atlasvi.loaders.tables.frames import make_frame, make_names
from atlasvi.loaders.zarr_warnings import quiet_libraries

# TileDB's defaults are 1 GiB a column and a budget of 10 GiB. More threads gain nothing: the loader reads in parallel.
# By default it returns all free memory to the system after each query and takes it again, page by page, for the next:
# a third of the time. Merging the order of tiles before reading them, on threads of its own, crashed the process about
# once in some thousand reads (TileDB 2.30: a thread uses the merge's state after it was freed); without it, none did.
TILEDB_CONFIG: dict[str, str | float] = {
    "soma.init_buffer_bytes": 24 * 2**20,
    "sm.mem.total_budget": 2**28,
    "sm.compute_concurrency_level": 1,
    "sm.io_concurrency_level": 1,
    "sm.mem.malloc_trim": "false",
    "sm.query.sparse_global_order.preprocess_tile_merge": "0",
}

COORDINATES = ("soma_dim_0", "soma_dim_1", "soma_data")
LONGEST_RUN = 2**11  # rows of a space tile as tiledbsoma writes them: reading a part takes as long as reading it all
MOST_VAR_IDS = 2**24

# Names of the gene column as tiledbsoma itself writes them, then as the CELLxGENE Census and others do.
GENE_NAMES = ("var_id", "feature_id", "gene_id", "gene_ids")


class SomaSource:
    """Cells of a TileDB-SOMA experiment. Use `open_soma`.

    Memory besides what is returned: `var`, TileDB's buffers (4 MiB a column), and 16 bytes for each gap in the ids.
    """

    shuffled = False  # the cells are in their authors' order
    spooled = False
    anndata_layer = None

    def __init__(self, spec: DataSpec, experiment: Any):
        self.spec, self.path = spec, spec.path
        path = spec.path
        self.notes: list[str] = []
        self._experiment = experiment
        chosen = choose_measurement(path, list(experiment.ms), spec.measurement)
        part = experiment.ms[chosen]
        self.layers = list(part["X"]) if "X" in part else []
        self.layer = choose_layer(path, chosen, self.layers, spec.layer)
        self._x = part["X"][self.layer]
        self._obs = experiment.obs
        self._runs = IdRuns(read_ids(self._obs))
        self.n_cells = self._runs.n_ids
        self._is_dense = self._x.soma_type == "SOMADenseNDArray"
        # TileDB's own count reads the coordinates of the whole array, 16 bytes an entry in memory (seen in 2.3).
        self.nnz: int | None = None

        var = read_frame(part.var, None, None)
        # None if no column names the genes: then one must be chosen, since row ids are not names.
        self.var = index_by(var, GENE_NAMES, [None] * len(var))
        self._var_ids = var["soma_joinid"].to_numpy()
        self._columns = None  # int32 [ids]: the column of each soma_joinid of var
        if len(self._var_ids) and int(self._var_ids.max()) < MOST_VAR_IDS:
            self._columns = np.full(int(self._var_ids.max()) + 1, -1, np.int32)
            self._columns[self._var_ids] = np.arange(len(self._var_ids))
        self._buffers = Buffers()
        if self._is_dense and (len(self._var_ids) != self._x.shape[1] or self.n_cells != self._x.shape[0]):
            raise SourceError(
                f"{path}: X is {self._x.shape[0]} x {self._x.shape[1]} where obs has {self.n_cells} rows and var "
                f"{len(self._var_ids)}; write the experiment again."
            )

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes, as stored: canonical CSR, values not validated."""
        with reading(self.path), quiet_libraries():
            n_genes = len(self._var_ids)
            if start >= stop:
                return sp.csr_matrix((0, n_genes), dtype=self._x.schema.field("soma_data").type.to_pandas_dtype())
            if self._is_dense:
                return self._read_dense(start, stop)
            rows, cols, values = self._read_entries(start, stop)
            data, indices, indptr = csr_from_entries(rows, cols, values, stop - start, n_genes)
            return canonical_csr(data, indices, indptr, n_genes)

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as counts of narrow dtypes, fast (see rows/narrowing.py); None: use `read_counts`."""
        with reading(self.path), quiet_libraries():
            low, high = self._runs.to_id(start), self._runs.to_id(stop - 1)
            if self._is_dense or self._columns is None or high - low != stop - 1 - start or stop - start > MOST_ROWS:
                return None
            block = EntryBlock(low, stop - start, self._columns, len(self._var_ids), self._buffers)
            for table in self._x.read((slice(low, high),)).tables():
                row_ids, column_ids, values = (table[name].to_numpy() for name in COORDINATES)
                if values.dtype not in VALUES or not block.add(row_ids, column_ids, values):
                    return None
            return block.to_rows(start)

    def ask_ahead(self, start: int, stop: int) -> None:
        """Nothing is read ahead: TileDB decides what it reads."""

    def count_run_cells(self) -> int:
        """Number of cells that is best read at a time, beginning at multiples of this number."""
        if self._is_dense:
            return choose_run(1.0, self.shuffled)
        dimensions = json.loads(self._x.schema_config_options().dims)
        extent = int(dimensions["soma_dim_0"].get("tile", LONGEST_RUN))
        return max(min(extent, LONGEST_RUN), FEWEST_CELLS)

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, obs_id as index; nullable dtypes of pandas for numbers that may be missing."""
        with reading(self.path), quiet_libraries():
            # One row is read even if none is wanted, because dtypes and categories come with rows.
            first = min(start, self.n_cells - 1)
            low, high = self._runs.to_id(first), self._runs.to_id(max(stop - 1, first))
            obs = read_frame(self._obs, low, high)
            return index_by(obs, ("obs_id",), obs["soma_joinid"].astype(str)).iloc[: stop - start]

    def close(self) -> None:
        """Close the experiment."""
        self._experiment.close()

    def _read_entries(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        low, high = self._runs.to_id(start), self._runs.to_id(stop - 1)
        rows, cols, values = [], [], []
        for table in self._x.read((slice(low, high),)).tables():
            row, row_known = self._runs.to_row(table["soma_dim_0"].to_numpy())
            col = np.searchsorted(self._var_ids, table["soma_dim_1"].to_numpy())
            col = np.minimum(col, len(self._var_ids) - 1)
            # Entries of deleted cells and genes stay in X; obs and var have only those that remain.
            known = row_known & (self._var_ids[col] == table["soma_dim_1"].to_numpy())
            rows.append((row - start)[known])
            cols.append(col[known].astype(np.int32))
            values.append(to_numbers(table["soma_data"].to_numpy(), self.path, "X")[known])
        if not rows:
            return np.empty(0, np.int64), np.empty(0, np.int32), self.read_counts(0, 0).data
        return np.concatenate(rows), np.concatenate(cols), np.concatenate(values)

    def _read_dense(self, start: int, stop: int) -> sp.csr_matrix:
        n_genes = len(self._var_ids)
        step = max(1, DENSE_BYTES // (8 * n_genes))
        bands = []
        for low in range(start, stop, step):
            high = min(low + step, stop)
            tile = self._x.read((slice(low, high - 1), slice(0, n_genes - 1))).to_numpy()
            bands.append(sp.csr_matrix(to_numbers(tile, self.path, "X")))
        matrix = bands[0] if len(bands) == 1 else sp.vstack(bands, format="csr")
        return canonical_csr(matrix.data, matrix.indices, matrix.indptr, n_genes)


def open_soma(spec: DataSpec) -> SomaSource:
    """Open a TileDB-SOMA experiment: one X layer (default: data, raw, or the only one) of one measurement.

    Raises SourceError where it can't be read as counts, MissingDependencyError without tiledbsoma.
    """
    path = spec.path
    try:
        with quiet_libraries():
            import tiledbsoma
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: to read a TileDB-SOMA experiment install tiledbsoma: pip install 'atlasvi[soma]'."
        ) from error
    with reading(path), quiet_libraries():
        config = {**TILEDB_CONFIG, **find_tiledb_options(spec.place)}
        context = tiledbsoma.SOMATileDBContext(tiledb_config=config)
        opened = tiledbsoma.open(name_for_tiledb(spec.place), context=context)
        if opened.soma_type != "SOMAExperiment":
            opened.close()
            raise SourceError(
                f"{path}: a {opened.soma_type}, not a SOMAExperiment; pass the experiment's folder above it."
            )
        try:
            return SomaSource(spec, opened)
        except BaseException:
            opened.close()
            raise


def choose_measurement(path: str, names: list[str], wanted: str | None) -> str:
    """The name of the measurement to read: `wanted`, else RNA, else the only one."""
    if not names:
        raise SourceError(f"{path}: it has no measurement, so no counts; copy the experiment again, or write it again.")
    if wanted is None:
        wanted = "RNA" if "RNA" in names else names[0] if len(names) == 1 else None
    if wanted is None or wanted not in names:
        what = "several measurements and no RNA" if wanted is None else f"no measurement {wanted!r}"
        raise SourceError(f"{path}: it has {what}; choose one of: {', '.join(names)}.")
    return wanted


def choose_layer(path: str, measurement: str, names: list[str], wanted: str | None) -> str:
    """The name of the X layer to read: `wanted`, else data, else raw (CELLxGENE's Census), else the only one."""
    if wanted is None:
        usual = [name for name in ("data", "raw") if name in names]
        wanted = usual[0] if usual else names[0] if len(names) == 1 else None
    if wanted is None or wanted not in names:
        if not names:
            raise SourceError(f"{path}: measurement {measurement} has no X, so no counts; choose another measurement.")
        what = f"no layer {wanted!r}" if wanted is not None else "several layers and none called data or raw"
        raise SourceError(
            f"{path}: measurement {measurement} has {what}; pass --layer with one of: {', '.join(names)}."
        )
    return wanted


class IdRuns:
    """Conversion between rows and soma_joinids of cells: ids ascend with the rows, in runs of consecutive ids.

    pieces  arrays of ids, in any order
    """

    def __init__(self, pieces: Iterator[np.ndarray]):
        firsts, lasts = [], []
        for ids in pieces:
            if len(ids):
                ids = np.sort(ids)
                breaks = np.flatnonzero(np.diff(ids) != 1)
                firsts.append(ids[np.append(0, breaks + 1)])
                lasts.append(ids[np.append(breaks, len(ids) - 1)])
        first = np.concatenate([np.empty(0, np.int64), *firsts])
        last = np.concatenate([np.empty(0, np.int64), *lasts])
        order = np.argsort(first)
        first, last = first[order], last[order]
        joined = np.append(True, first[1:] != last[:-1] + 1) if len(first) else np.empty(0, bool)
        self._first = first[joined]
        lengths = np.append(last[np.flatnonzero(joined)[1:] - 1], last[-1:]) - self._first + 1
        self._row = np.concatenate([[0], np.cumsum(lengths)])

    @property
    def n_ids(self) -> int:
        """Number of cells."""
        return int(self._row[-1])

    def to_id(self, row: int) -> int:
        """The id of the cell in a row."""
        run = min(int(np.searchsorted(self._row, row, side="right")) - 1, len(self._first) - 1)
        return int(self._first[run] + row - self._row[run])

    def to_row(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows of these ids, bool mask of the ids that exist)."""
        run = np.maximum(np.searchsorted(self._first, ids, side="right") - 1, 0)
        offset = ids - self._first[run]
        return self._row[run] + offset, (offset >= 0) & (offset < self._row[run + 1] - self._row[run])


def read_ids(frame: Any) -> Iterator[np.ndarray]:
    """Yield the soma_joinids of a dataframe, a piece at a time."""
    for table in frame.read(column_names=["soma_joinid"]):
        yield table["soma_joinid"].to_numpy()


def read_frame(frame: Any, low: int | None, high: int | None) -> pd.DataFrame:
    """Read the rows of a SOMA dataframe with ids low to high (both included; None: all), sorted by id.

    Text is object (None where missing); integers and booleans that may be missing get pandas' nullable dtypes, the
    same in every slice.
    """
    if low is None:
        table = frame.read().concat()
    elif tuple(frame.index_column_names) == ("soma_joinid",):
        table = frame.read((slice(low, high),)).concat()
    else:
        table = frame.read(value_filter=f"soma_joinid >= {low} and soma_joinid <= {high}").concat()
    nullable = {f.name for f in table.schema if f.nullable}
    columns = {}
    for name in table.column_names:
        column = table[name]
        kind = str(column.type)
        if name in nullable and (kind in NULLABLE or kind == "bool"):
            columns[name] = pd.array(column.to_pylist(), dtype=NULLABLE.get(kind, "boolean"))
        elif kind in ("string", "large_string"):
            columns[name] = np.array(column.to_pylist(), dtype=object)
        else:
            columns[name] = column.to_pandas().array
    return make_frame(columns).sort_values("soma_joinid", ignore_index=True)


NULLABLE = {f"{sign}int{bits}": f"{'UI' if sign else 'I'}nt{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def index_by(frame: pd.DataFrame, keys: tuple[str, ...], fallback: Any) -> pd.DataFrame:
    """The frame without soma_joinid, its index the first of `keys` that it has (else `fallback`), as text."""
    key = next((key for key in keys if key in frame), None)
    columns = {str(name): frame[name].array for name in frame if name not in (key, "soma_joinid")}
    return make_frame(columns, make_names(fallback if key is None else frame[key], key))
