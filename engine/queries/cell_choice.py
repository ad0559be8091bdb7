"""Choose cells by conditions and expressions over obs, by names, by indices or by a mask."""

import ast
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Generator

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.model.covariates import Category, find_categories, to_category
from atlasvi.engine.queries.obs_rows import SLICE_CELLS
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError, QuestionCells
from atlasvi.loaders.batches.cell_selection import choose_cells as evaluate_expression
from atlasvi.loaders.cells.coded_columns import code_column, count_codes, recode, slice_column
from atlasvi.loaders.tables.store_tables import check_column, suggest_names

SHOWN_VALUES = 1000  # of a column that is not categorical, among which an error looks for similar ones
Where = Sequence[int] | Sequence[bool] | np.ndarray | str
"""How to choose cells: indices, a mask, or a condition or expression over obs (see `find_cells`)."""


def choose_cells(
    cells: QuestionCells | KeptPosterior,
    names: Sequence[str] | None = None,
    where: Where | Sequence[str | np.ndarray] = (),
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Ascending int64 indices of the cells that meet all of these conditions.

    cells   the cells of a question, or a minified store
    names   cell names; None: all cells. All cells of a name that repeats are chosen
    where   conditions or expressions over obs, arrays of indices, or masks, all of which must hold (see `find_cells`);
            or one of these
    limit   largest number of cells; the first ones are kept
    sample  largest number of cells; they are drawn at random, all with the same probability, from `seed`
    Raises ColumnError or QueryError if a column, a value or a name does not exist, or if no cell is left.
    """
    if limit is not None and sample is not None:
        raise QueryError("limit keeps the first cells, sample keeps random ones: use one of the two.")
    if isinstance(cells, KeptPosterior):
        cells = MinifiedCells(cells)
    generator = np.random.default_rng(seed)
    conditions = _list_conditions(where)
    named = None if names is None else _find_names(cells, names)
    if not len(conditions):
        if named is None:
            n_cells = cells.n_cells if limit is None else min(limit, cells.n_cells)
            return np.arange(n_cells) if sample is None else draw_indices(n_cells, sample, generator)
        if sample is not None:
            return named[draw_indices(len(named), sample, generator)]
        return named[:limit]
    chosen = _mark_all(cells, conditions, named)
    if cells.n_cells and not chosen.any():
        of_these = "" if named is None else "of the named cells "
        raise QueryError(f"{cells.path}: no cell {of_these}meets {_quote(conditions)}.")
    if sample is not None:
        return _sample_marked(chosen, sample, generator)
    return np.flatnonzero(chosen)[:limit].copy()  # of a view, all would stay in memory


def count_cells(
    cells: QuestionCells | KeptPosterior,
    names: Sequence[str] | None = None,
    where: Where | Sequence[str | np.ndarray] = (),
) -> int:
    """How many cells `choose_cells` would choose; 0 where no cell meets an expression.

    Raises ColumnError or QueryError if a column, a value or a name does not exist.
    """
    if isinstance(cells, KeptPosterior):
        cells = MinifiedCells(cells)
    conditions, named = _list_conditions(where), None if names is None else _find_names(cells, names)
    if not len(conditions):
        return cells.n_cells if named is None else len(named)
    return int(np.count_nonzero(_mark_all(cells, conditions, named, may_be_none=True)))


def _list_conditions(where: Any) -> Sequence[Any]:
    several = isinstance(where, list | tuple) and all(isinstance(one, str | np.ndarray) for one in where)
    return where if several else [where]


def _quote(conditions: Sequence[Any]) -> str:
    return " and ".join(repr(one) if isinstance(one, str) else "the mask or indices" for one in conditions)


def _mark_all(
    cells: QuestionCells, conditions: Sequence[Any], named: np.ndarray | None, may_be_none: bool = False
) -> np.ndarray:
    """bool [cells]: the cells that meet all conditions, and are among the named ones.

    may_be_none  whether an expression that is true for no cell is no error
    """
    chosen = mark_cells(cells, conditions[0], may_be_none)
    for condition in conditions[1:]:
        chosen &= mark_cells(cells, condition, may_be_none)
    if named is not None:
        named = named[chosen[named]]
        chosen[:] = False
        chosen[named] = True
    return chosen


def draw_indices(total: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """Ascending int64: n of the integers below `total` (all, if there are fewer), each subset with equal probability.

    Time and memory are those of the sample, not of the whole.
    """
    if n >= total:
        return np.arange(total)
    if n > total // 2:  # the sample is then about as large as a mask of all
        mask = np.ones(total, bool)
        mask[draw_indices(total, total - n, generator)] = False
        return np.flatnonzero(mask)
    drawn = np.empty(0, np.int64)
    while len(drawn) < n:  # the first n different values of independent draws
        drawn = np.concatenate([drawn, generator.integers(total, size=n + n // 8 + 16)])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return np.sort(drawn[:n])


def _sample_marked(mask: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Ascending int64 indices of at most n of the marked cells, whose indices are not all made."""
    sizes = [np.count_nonzero(mask[at : at + SLICE_CELLS]) for at in range(0, len(mask), SLICE_CELLS)]
    begins = np.cumsum([0, *sizes])
    ranks = draw_indices(int(begins[-1]), n, generator)
    found = [np.empty(0, np.int64)]
    for k, size in enumerate(sizes):
        here = ranks[np.searchsorted(ranks, begins[k]) : np.searchsorted(ranks, begins[k] + size)]
        if len(here):
            marked = np.flatnonzero(mask[k * SLICE_CELLS : (k + 1) * SLICE_CELLS])
            found.append(k * SLICE_CELLS + marked[here - begins[k]])
    return np.concatenate(found)


def sample_cells(indices: np.ndarray, n: int, generator: Generator) -> np.ndarray:
    """Ascending int64 indices of at most n of these cells, chosen at random."""
    if len(indices) > n:
        order = torch.randperm(len(indices), generator=generator, device=generator.device)[:n]
        indices = indices[order.cpu().numpy()]
    return np.sort(indices)


def mark_cells(cells: QuestionCells, where: Where | None, may_be_none: bool = False) -> np.ndarray:
    """bool [cells]: the cells chosen by one of the values that `find_cells` accepts.

    may_be_none  whether an expression that is true for no cell is no error
    """
    if isinstance(where, str):
        return _evaluate(cells, where, may_be_none)
    mask = np.zeros(cells.n_cells, bool)
    mask[_find_indices(where, cells.n_cells, cells.path)] = True
    return mask


def find_cells(cells: QuestionCells, where: Where | None) -> np.ndarray:
    """int64 indices of the cells chosen by one of the following; None chooses all cells.

    COLUMN=VALUE  a value of an obs column, or several values, separated by commas
    an expression over obs columns, as `loaders.choose_cells` reads it: "cell_type == 'B cell' and n_genes > 500"
    indices in any order, or a mask
    Raises ColumnError or QueryError if a column, a value or a cell does not exist.
    """
    if not isinstance(where, str):
        return _find_indices(where, cells.n_cells, cells.path)
    return np.flatnonzero(_evaluate(cells, where))


def _evaluate(cells: QuestionCells, where: str, may_be_none: bool = False) -> np.ndarray:
    """bool [cells]: where a condition or an expression over obs is true."""
    column, equals, wanted = where.partition("=")
    if column in cells.obs_columns:
        if not equals and not pd.api.types.is_bool_dtype(cells.read_column(column, 0, 1).dtype):
            raise QueryError(f"{cells.path}: {where!r} is a column: write it as COLUMN=VALUE, or as an expression.")
        # "type==x" is an expression, unless the column holds the text "=x"
        if equals and (not wanted.startswith("=") or _has_value(cells, column, wanted)):
            return _find_values(cells, column, wanted)
    elif equals and not _is_expression(where) and column.strip() not in cells.obs_columns:  # "type ==" is one cut short
        check_column(column, cells.obs_columns, cells.path)
    return evaluate_expression(cells, where, may_be_none)


def _has_value(cells: QuestionCells, column: str, text: str) -> bool:
    """Whether the column holds this text."""
    return any((part == text).any() for _, part in slice_column(cells, column))


def _is_expression(text: str) -> bool:
    plain = "".join("name" if k % 2 else part for k, part in enumerate(text.split("`")))  # `quoted names`
    try:
        ast.parse(plain.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _find_values(cells: QuestionCells, column: str, wanted: str) -> np.ndarray:
    """bool [cells]: the cells whose value in the column is one of the wanted ones.

    Categories are compared by their codes, other values slice by slice.
    """
    if isinstance(cells.read_column(column, 0, 0).dtype, pd.CategoricalDtype):
        coded = code_column(cells, column)
        used = count_codes(coded.codes, len(coded.categories)) > 0
        there = [to_category(value) for value in coded.categories[used]]
        places = np.flatnonzero(used)[_find_wanted(cells.path, column, wanted, there)]
        table = np.isin(np.arange(len(used) + 1), places)  # the last: missing values
        return recode(coded.codes, table, np.dtype(bool))
    # the whole text first, because a value may contain a comma
    texts = [wanted, *(value.strip() for value in wanted.split(","))]
    masks, found = np.zeros((2, cells.n_cells), bool), np.zeros(len(texts), bool)
    first: Iterable[Category] = ()
    for start, part in slice_column(cells, column):
        first = first or [to_category(value) for value in part.iloc[:SHOWN_VALUES].dropna().unique()]
        hits = _compare_with_texts(part, texts)
        found |= hits.any(1)
        masks[:, start : start + len(part)] = hits[0], hits[1:].any(0)
    if not found[0] and not found[1:].all():
        raise _no_value(cells.path, column, texts[1 + int(np.argmin(found[1:]))], first)
    return masks[0 if found[0] else 1]


def _compare_with_texts(part: pd.Series, texts: list[str]) -> np.ndarray:
    """bool [texts, cells]: which cells of a slice hold the value that each text stands for."""
    dtype = getattr(part.dtype, "numpy_dtype", part.dtype)  # of a masked column that of its values
    hits = np.zeros((len(texts), len(part)), bool)
    if dtype.kind in "iuf":
        for hit, text in zip(hits, texts):
            number = _parse_number(text, dtype)
            if number is not None:
                hit[:] = (part == number).fillna(False)
        return hits
    codes, values = pd.factorize(part)
    places = find_categories([to_category(value) for value in values], texts)
    for hit, place in zip(hits, places):
        if place is not None:
            hit[:] = codes == place
    return hits


def _parse_number(text: str, dtype: np.dtype) -> Any:
    """The number of a dtype that a text stands for; None if there is none."""
    try:
        return dtype.type(text if dtype.kind == "f" else int(text))
    except (ValueError, OverflowError):
        return None


def _find_wanted(path: str, column: str, wanted: str, there: list[Category]) -> list[int]:
    """Indices of the wanted values among those that are there."""
    accepted = [wanted] if wanted in map(str, there) else [value.strip() for value in wanted.split(",")]
    places = find_categories(there, accepted)
    if None in places:
        raise _no_value(path, column, accepted[places.index(None)], there)
    return [place for place in places if place is not None]


def _no_value(path: str, column: str, value: str, there: Iterable[Category]) -> QueryError:
    names = sorted(map(str, there))
    hint = suggest_names(value, names)
    return QueryError(f"{path}: no cell has {column} = {value!r} (there are: {name_some(names) or 'none'}).{hint}")


def _find_names(cells: QuestionCells, names: Sequence[str]) -> np.ndarray:
    """Ascending int64 indices of the cells with these names. Raises QueryError if a name does not exist."""
    found, there = cells.find_named(names)
    if missing := set(names).difference(there):
        raise QueryError(f"{cells.path}: {len(missing)} of the cells do not exist (first: {sorted(missing)[0]!r}).")
    return found


def name_some(values: Sequence[str], n: int = 8) -> str:
    """The first of these names, for a message."""
    return ", ".join(map(str, values[:n])) + (", ..." if len(values) > n else "")


def _find_indices(chosen: Any, n_cells: int, path: str) -> np.ndarray:
    """int64 indices of cells chosen by indices in any order, or by a mask; None chooses all cells.

    Raises QueryError if an index is out of range, or a mask has the wrong length.
    """
    if chosen is None:
        return np.arange(n_cells)
    indices = np.asarray(chosen).ravel()
    if indices.dtype == bool:
        if len(indices) != n_cells:
            raise QueryError(f"{path}: the mask has {len(indices):,} values for {n_cells:,} cells: pass one per cell.")
        return np.flatnonzero(indices)
    if len(indices) and indices.dtype.kind not in "iu":
        raise QueryError(
            f"{path}: cells are chosen by their indices or by a mask, not by {indices[0]!r}: "
            "adata.obs_names.get_indexer(names) gives the indices of names."
        )
    indices = indices.astype(np.int64)
    if len(indices) and not (indices.min() >= -n_cells and indices.max() < n_cells):
        raise QueryError(f"{path}: there is no cell {indices[np.argmax(np.abs(indices))]}: there are {n_cells:,}.")
    return indices % max(n_cells, 1)


def in_order(indices: np.ndarray, n_cells: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """How to read cells in any order with repeats: (ascending indices, or None for all; position of each cell in them).

    The positions are None if the cells are in ascending order already.
    """
    unique, places = np.unique(indices, return_inverse=True)
    if len(unique) == len(indices) and (places == np.arange(len(places))).all():
        return (None if len(unique) == n_cells else unique), None
    return unique, places
