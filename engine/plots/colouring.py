"""A column of obs, or the expression of a gene, as colours of cells."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from atlasvi.engine.plots.palettes import NUMBERS, choose_colours, find_map
from atlasvi.engine.plots.style import Style
from atlasvi.engine.queries.expression import slice_expression
from atlasvi.engine.queries.model_names import find_genes
from atlasvi.engine.queries.opened_question import OpenedQuestion
from atlasvi.engine.queries.question_cells import QueryError, QuestionCells
from atlasvi.loaders.cells.coded_columns import CodedColumn, code_column, count_codes, slice_column

MAX_CATEGORIES = 40  # with a colour of their own; the rarest others are drawn as one
MOST_VALUES = 20_000  # of text, such as barcodes, beyond which a column is no picture
OUTLIERS = 0.5  # percent of the cells at either end of a scale, which take its first and last colour
LONGEST_NAME = 30


@dataclass(frozen=True)
class Categories:
    """Cells by category.

    codes    int16 [cells]: place in `names`; -1 for a missing value
    names    as they are shown; the last one stands for all categories beyond forty, if `has_others`
    n_total  how many categories there are
    """

    title: str
    codes: np.ndarray
    names: list[str]
    n_total: int
    has_others: bool = False

    def list_colours(self, style: Style) -> list[str]:
        """A colour for each name."""
        n = len(self.names) - self.has_others
        return [*choose_colours(n, style.dark), *[style.faint] * self.has_others]

    def find_layers(self) -> np.ndarray:
        """uint8 [cells]: missing values lie below others, and these below the categories."""
        layers = np.full(len(self.names) + 1, 2, np.uint8)
        if self.has_others:
            layers[len(self.names) - 1] = 1
        layers[-1] = 0
        return layers[self.codes]

    def paint(self, style: Style) -> np.ndarray:
        """uint8 [cells, 3]: the colour of each cell."""
        return to_bytes([*self.list_colours(style), style.missing])[self.codes]


@dataclass(frozen=True)
class Numbers:
    """Cells by a number.

    values    float32 [cells]; NaN for a missing value
    unit      of the numbers, below the title of the scale
    limits    of the scale, where others take its first or last colour; None: all but the outermost 0.5% at either end
    map_name  a colour map of matplotlib
    """

    title: str
    values: np.ndarray
    unit: str = ""
    limits: tuple[float, float] | None = None
    map_name: str = NUMBERS

    def find_limits(self) -> tuple[float, float]:
        """The first and last number of the scale."""
        if self.limits is not None:
            return self.limits
        known = self.values[np.isfinite(self.values)]
        if not len(known):
            return 0.0, 1.0
        low, high = np.percentile(known, (OUTLIERS, 100 - OUTLIERS)).tolist()
        if low == high:  # nearly all are equal
            low, high = float(known.min()), float(known.max())
        return (low, high) if low < high else (low, low + max(abs(low), 1e-6))

    def find_layers(self) -> np.ndarray:
        """uint8 [cells]: missing values lie below others."""
        return np.isfinite(self.values).astype(np.uint8)

    def paint(self, style: Style) -> np.ndarray:
        """uint8 [cells, 3]: the colour of each cell."""
        low, high = self.find_limits()
        table = np.vstack([to_bytes(find_map(self.map_name)(np.arange(256) / 255)), to_bytes([style.missing])])
        known = np.isfinite(self.values)
        places = np.full(len(self.values), 256, np.int16)
        places[known] = np.clip((self.values[known] - low) / (high - low) * 256, 0, 255)
        return table[places]


Colouring = Categories | Numbers


def to_bytes(colours: Any) -> np.ndarray:
    """Colours as uint8 [colours, 3]."""
    from matplotlib.colors import to_rgba_array

    return np.rint(255 * to_rgba_array(colours)[:, :3]).astype(np.uint8)


def colour_series(title: str, values: pd.Series) -> Colouring:
    """Values [cells] as colours: numbers, if there are more than forty different ones, or else categories."""
    if is_number(values.dtype) and values.nunique() > MAX_CATEGORIES:
        return Numbers(title, values.to_numpy(np.float32, na_value=np.nan))
    coded = values if isinstance(values.dtype, pd.CategoricalDtype) else values.astype("category")
    column = CodedColumn(coded.cat.codes.to_numpy(), coded.cat.categories)
    return colour_codes(title, column, is_ordered=bool(coded.cat.ordered))


def colour_column(
    cells: QuestionCells,
    name: str,
    chosen: np.ndarray | None,
    limits: tuple[float, float] | None = None,
    map_name: str = NUMBERS,
) -> Colouring:
    """A column of obs as colours of the chosen cells, read in slices.

    chosen  ascending int64 indices; None: all cells
    Raises ColumnError for an unknown column, QueryError for text with too many different values.
    """
    dtype = cells.read_column(name, 0, 1).dtype
    if is_number(dtype):
        values = np.empty(cells.n_cells, np.float64)
        for start, part in slice_column(cells, name):
            values[start : start + len(part)] = part.to_numpy(np.float64, na_value=np.nan)
        values = values if chosen is None else values[chosen]
        if limits is not None or len(np.unique(values[~np.isnan(values)])) > MAX_CATEGORIES:
            return Numbers(name, values.astype(np.float32), "", limits, map_name)
        is_whole = bool((values[~np.isnan(values)] % 1 == 0).all())
        codes, found = pd.factorize(values, sort=True)
        column = CodedColumn(codes, pd.Index(found.astype(np.int64) if is_whole else found, dtype=object))
        return colour_codes(name, column, is_ordered=True)
    if not isinstance(dtype, pd.CategoricalDtype):
        some = cells.read_column(name, 0, min(2 * MOST_VALUES, cells.n_cells))
        if some.nunique() > MOST_VALUES:
            raise QueryError(
                f"{cells.path}: obs column {name!r} has more than {MOST_VALUES:,} different values: it can't colour a "
                "picture."
            )
    column = code_column(cells, name)
    if chosen is not None:
        column = CodedColumn(column.codes[chosen], column.categories)
    return colour_codes(name, column, is_ordered=bool(getattr(dtype, "ordered", False)))


def colour_codes(title: str, column: CodedColumn, is_ordered: bool = False) -> Categories:
    """A column of codes as categories that a picture shows: those that occur, sorted, at most forty of them.

    is_ordered  whether the order of the categories stays; otherwise "donor 2" comes before "donor 10"
    """
    counts = count_codes(column.codes, len(column.categories))
    there = np.flatnonzero(counts)
    names = [str(name) for name in column.categories]
    if not is_ordered:
        there = np.array(sorted(there.tolist(), key=lambda code: split_numbers(names[code])), np.int64)
    n_kept = len(there) if len(there) <= MAX_CATEGORIES else MAX_CATEGORIES - 1
    kept = there[np.sort(np.argsort(-counts[there], kind="stable")[:n_kept])]
    table = np.full(len(counts) + 1, n_kept, np.int16)  # all that are not kept are "others"
    table[kept] = np.arange(n_kept)
    table[-1] = -1  # a missing value
    n_others = len(there) - n_kept
    shown = [shorten(names[code]) for code in kept] + [f"{n_others:,} others"] * (n_others > 0)
    return Categories(title, table[column.codes], shown, len(there), n_others > 0)


def colour_genes(
    opened: OpenedQuestion,
    genes: Sequence[str],
    chosen: np.ndarray | None,
    *,
    library_size: float | str = 10_000,
    scale: Literal["log", "linear"] = "log",
    transform_batch: Any = None,
    limits: tuple[float, float] | None = None,
    map_name: str = NUMBERS,
    progress: Any = lambda stage, done, total: None,
) -> list[Numbers]:
    """The decoded expression of genes, at the posterior mean of z, as colours of the chosen cells.

    scale  log: log(1 + expression at the library size); linear: expression at the library size
    Raises GeneError for an unknown gene, QueryError for an unknown batch or an invalid library size.
    """
    n_cells = opened.cells.n_cells if chosen is None else len(chosen)
    values, at = np.empty((len(genes), n_cells), np.float32), 0
    find_genes(opened.run, genes, opened.cells.path)
    parts = slice_expression(
        opened.run,
        opened.cells,
        chosen,
        genes=genes,
        library_size=library_size,
        transform_batch=transform_batch,
        n_samples=0,
    )
    for names, part in parts:
        values[:, at : at + len(names)] = np.log1p(part).T if scale == "log" else part.T
        at += len(names)
        progress("decoding", at, n_cells)
    unit = name_unit(library_size, scale)
    return [Numbers(gene, own, unit, limits, map_name) for gene, own in zip(genes, values)]


def name_unit(library_size: float | str, scale: Literal["log", "linear"]) -> str:
    """The unit of expression at a library size."""
    if isinstance(library_size, str) and library_size in ("observed", "latent"):
        unit = "expected counts" if library_size == "observed" else "counts at the latent library size"
    else:
        size = float(library_size)
        unit = "proportion of counts" if size == 1 else f"counts per {size:,.10g}"
    return f"log(1 + {unit})" if scale == "log" else unit


def is_number(dtype: Any) -> bool:
    """Whether values of a dtype are numbers; truth values are not."""
    return bool(pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype))


def split_numbers(name: Any) -> list[Any]:
    """A sorting key that puts "donor 2" before "donor 10"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(name))]


def shorten(name: str, length: int = LONGEST_NAME) -> str:
    """Shorten a name by its middle, because names often differ at the start or the end; on one line."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 9]}…{name[-8:]}"
