"""Columns of obs, and decoded genes, as colours of a page: a code for each point, in the order of the tiles.

Categories are numbered in their order; numbers are 65,535 steps from the smallest to the largest. The largest code of
the type stands for a missing value.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.neighbours.index_file import identify_files
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.service.tiles import Tiles
from atlasvi.loaders.cells.coded_columns import CodedColumn, code_column, count_codes, recode, slice_column
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.manifest import read_json, write_json
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.store_files import check_version
from atlasvi.loaders.tables.store_tables import check_column

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
MOST_CATEGORIES = 2**16 - 1
FEW_INTEGERS = 256  # so many different whole numbers, at most, are names of groups (clusters), not quantities
SCALED_TO = 10_000  # counts of a cell, before log1p: how expression is shown
STEPS = 2**16 - 2  # the largest code of a number


@dataclass(frozen=True)
class TileColumn:
    """How to read the codes of a column.

    kind        'categories' or 'numbers'
    dtype       of the codes: 'uint8' or 'uint16'
    missing     the code of cells without a value
    n_missing   how many cells of the store these are
    categories  the names of the codes, and `counts`, the cells of the store that have each
    low, high   of numbers: what codes 0 and 65,534 stand for
    shown       of numbers: between which values the colours go, so that a few extremes don't hide the others
    identity    of the column in the store
    """

    name: str
    kind: Literal["categories", "numbers"]
    dtype: Literal["uint8", "uint16"]
    missing: int
    n_missing: int
    categories: list[str]
    counts: list[int]
    low: float
    high: float
    shown: tuple[float, float]
    identity: str


def name_column(name: str) -> str:
    """The name of the files of a column, which may have any characters in its own."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def read_column(tiles: Tiles, store: KeptPosterior, name: str) -> tuple[TileColumn, np.ndarray]:
    """A column, and its codes uint8 or uint16 [points], in the order of the tiles; kept in their folder, if it can be.

    Raises ColumnError if there is no such column, QueryError if it has too many different texts to be colours,
    SourceError if the files are damaged, or of a newer format.
    """
    check_column(name, store.obs_columns, store.path)
    file = tiles.folder / "columns" / name_column(name)
    head, body = file.with_suffix(".json"), file.with_suffix(".bin")
    identity = _identify_column(tiles, store, name)
    column, size = _read_head(head), body.stat().st_size if body.is_file() else -1
    if column is None or column.identity != identity or size != len(tiles.cells) * np.dtype(column.dtype).itemsize:
        column, codes = code_cells(store, name, identity)
        codes = recode(np.asarray(tiles.cells, np.uint32), codes, codes.dtype)
        try:
            file.parent.mkdir(exist_ok=True)
            write_whole(body, codes.data)
            write_json(head, {"format_version": FORMAT_VERSION, **asdict(column)})
        except (OSError, OutputError) as error:  # a folder of somebody else, a full disk
            log.warning("column %r is coded anew when it is next opened: %s can't be written (%s)", name, body, error)
            return column, codes
    codes = np.memmap(body, column.dtype, "r", shape=(len(tiles.cells),))
    return column, codes


def _read_head(head: Path) -> TileColumn | None:
    if not head.is_file():
        return None
    record = read_json(head, older=False)
    check_version(str(head), "column of tiles", record, FORMAT_VERSION)
    with reading(str(head)):
        values = {name: record[name] for name in TileColumn.__dataclass_fields__}
        return TileColumn(**{**values, "shown": tuple(values["shown"])})


def _identify_column(tiles: Tiles, store: KeptPosterior, name: str) -> str:
    checksum = google_crc32c.Checksum(identify_files(store.path, [f"obs/{name}/"]))
    for start in (0, max(store.n_cells - 64, 0)):
        checksum.update("\n".join(map(str, store.read_column(name, start, min(start + 64, store.n_cells)))).encode())
    return f"{tiles.index.identity} {checksum.hexdigest().decode()}"


def code_cells(store: KeptPosterior, name: str, identity: str = "") -> tuple[TileColumn, np.ndarray]:
    """A column, and its codes in the order of the store. Raises QueryError if it has too many different texts."""
    dtype = store.read_column(name, 0, 0).dtype
    plain = getattr(dtype, "numpy_dtype", dtype)
    is_number = not isinstance(dtype, pd.CategoricalDtype) and plain.kind in "iuf"
    if is_number and (plain.kind == "f" or not _has_few(store, name, FEW_INTEGERS)):
        return _code_numbers(store, name, identity)
    if isinstance(dtype, pd.CategoricalDtype) or _has_few(store, name, MOST_CATEGORIES):
        coded = code_column(store, name).drop_unused()
        if len(coded.categories) <= MOST_CATEGORIES:
            return _code_categories(coded, name, identity)
    raise QueryError(
        f"{store.path}: column {name!r} has more than {MOST_CATEGORIES:,} different values, too many for colours."
    )


def _has_few(store: KeptPosterior, name: str, most: int) -> bool:
    """Whether a column has at most so many different values; reads no further than needed."""
    seen: set[Any] = set()
    for _, part in slice_column(store, name):
        seen |= set(part.dropna().unique())
        if len(seen) > most:
            return False
    return True


def _code_categories(coded: CodedColumn, name: str, identity: str) -> tuple[TileColumn, np.ndarray]:
    n = len(coded.categories)
    dtype: Literal["uint8", "uint16"] = "uint8" if n < 256 else "uint16"
    missing = int(np.iinfo(dtype).max)
    codes = recode(coded.codes, np.append(np.arange(n), missing), np.dtype(dtype))
    counts = count_codes(coded.codes, n)
    names, n_missing = [str(value) for value in coded.categories], len(codes) - int(counts.sum())
    column = TileColumn(
        name, "categories", dtype, missing, n_missing, names, counts.tolist(), 0, 0, (0.0, 0.0), identity
    )
    return column, codes


def _code_numbers(store: KeptPosterior, name: str, identity: str) -> tuple[TileColumn, np.ndarray]:
    low, high = np.inf, -np.inf
    for _, part in slice_column(store, name):
        values = _to_floats(part)
        known = values[np.isfinite(values)]
        if len(known):
            low, high = min(low, float(known.min())), max(high, float(known.max()))
    if low > high:  # all are missing
        low, high = 0.0, 0.0
    codes = np.empty(store.n_cells, np.uint16)
    for start, part in slice_column(store, name):
        codes[start : start + len(part)] = to_codes(_to_floats(part), low, high)
    counts = np.bincount(codes, minlength=2**16)
    shown = find_range(counts[:-1], low, high)
    return TileColumn(name, "numbers", "uint16", STEPS + 1, int(counts[-1]), [], [], low, high, shown, identity), codes


def _to_floats(part: pd.Series) -> np.ndarray:
    return part.to_numpy(np.float64, na_value=np.nan)


def to_codes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint16: steps of values from `low` to `high`, which are 0 and 65,534; 65,535 where a value is not finite."""
    steps = (np.asarray(values, np.float64) - low) * (STEPS / (high - low) if high > low else 0.0)
    known = np.isfinite(steps)
    return np.where(known, np.rint(np.clip(np.where(known, steps, 0), 0, STEPS)), STEPS + 1).astype(np.uint16)


def find_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The values below which 1% and 99% of the cells are, from the cells of each code, int64 [65,535]."""
    total = np.cumsum(counts)
    if total[-1] == 0:
        return low, high
    first, last = np.searchsorted(total, [0.01 * total[-1], 0.99 * total[-1]])
    step = (high - low) / STEPS
    return (low + int(first) * step, low + int(last) * step) if last > first else (low, high)


Decode = Callable[[np.ndarray, str], np.ndarray]
"""(ascending indices of cells, gene) -> float32 [cells]: expression scaled to 10,000 counts a cell."""


def decode_tile(tiles: Tiles, number: int, gene: str, decode: Decode) -> np.ndarray:
    """uint16 [points]: log1p of the decoded expression of a gene in the cells of a tile.

    Code 65,534 stands for log1p(10,000), the largest value that there can be, so that all tiles have the same steps.
    """
    cells = tiles.read_cells(number).astype(np.int64)
    order = np.argsort(cells)
    codes = np.empty(len(cells), np.uint16)
    codes[order] = to_codes(np.log1p(decode(cells[order], gene)), 0.0, float(np.log1p(SCALED_TO)))
    return codes
