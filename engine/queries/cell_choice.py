"""Choose cells by conditions and expressions over obs, by names, by indices or by a mask."""

import ast
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Generator

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.model.covariates import Category, find_categories, to_category
from atlasvi.engine.queries.obs_rows import SLICE_CELLS, slice_cells
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError, QuestionCells
from atlasvi.loaders.batches.cell_selection import choose_cells as evaluate_expression
from atlasvi.loaders.tables.store_tables import check_column

Where = Sequence[int] | Sequence[bool] | np.ndarray | str
"""How to choose cells: indices, a mask, or a condition or expression over obs (see `find_cells`)."""


def choose_cells(
    cells: QuestionCells | KeptPosterior,
    names: Sequence[str] | None = None,
    where: Where | Sequence[str] = (),
    limit: int | None = None,
) -> np.ndarray:
    """Ascending int64 indices of the cells that meet all of these conditions.

    cells  the cells of a question, or a minified store
    names  cell names; None: all cells
    where  conditions or expressions over obs, all of which must hold (see `find_cells`); or a mask, or indices
    limit  largest number of cells; the first ones are kept
    Raises ColumnError or QueryError if a column, a value or a name does not exist.
    """
    if isinstance(cells, KeptPosterior):
        cells = MinifiedCells(cells)
    several = isinstance(where, list | tuple) and all(isinstance(one, str) for one in where)
    conditions: Sequence[Any] = where if several else [where]  # type: ignore[assignment]
    if names is None and not len(conditions):
        return np.arange(cells.n_cells if limit is None else min(limit, cells.n_cells))
    chosen = np.ones(cells.n_cells, bool)
    for condition in conditions:
        chosen &= mark_cells(cells, condition)
    if names is not None:
        chosen &= _find_names(cells, names)
    return np.flatnonzero(chosen)[:limit].copy()  # of a view, all would stay in memory


def sample_cells(indices: np.ndarray, n: int, generator: Generator) -> np.ndarray:
    """Ascending int64 indices of at most n of these cells, chosen at random."""
    if len(indices) > n:
        order = torch.randperm(len(indices), generator=generator, device=generator.device)[:n]
        indices = indices[order.cpu().numpy()]
    return np.sort(indices)


def mark_cells(cells: QuestionCells, where: Where | None) -> np.ndarray:
    """bool [cells]: the cells chosen by one of the values that `find_cells` accepts."""
    if isinstance(where, str):
        return _evaluate(cells, where)
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


def _evaluate(cells: QuestionCells, where: str) -> np.ndarray:
    """bool [cells]: where a condition or an expression over obs is true."""
    column, equals, wanted = where.partition("=")
    if column in cells.obs_columns:
        if not equals and not pd.api.types.is_bool_dtype(cells.read_column(column, 0, 1).dtype):
            raise QueryError(f"{cells.path}: {where!r} is a column: write it as COLUMN=VALUE, or as an expression.")
        values = _list_values(cells, column) if equals else []
        # "type==x" is an expression, unless the column holds the text "=x"
        if equals and (not wanted.startswith("=") or wanted in map(str, values)):
            return _find_values(cells, column, wanted, values)
    elif equals and not _is_expression(where):
        check_column(column, cells.obs_columns, cells.path)
    return evaluate_expression(cells, where)


def _is_expression(text: str) -> bool:
    plain = "".join("name" if k % 2 else part for k, part in enumerate(text.split("`")))  # `quoted names`
    try:
        ast.parse(plain.strip(), mode="eval")
    except SyntaxError:
        return False
    return True


def _read_slices(cells: QuestionCells, column: str) -> Iterator[tuple[int, pd.Series]]:
    for start in range(0, cells.n_cells, SLICE_CELLS):
        yield start, cells.read_column(column, start, min(start + SLICE_CELLS, cells.n_cells))


def _list_values(cells: QuestionCells, column: str) -> list[Category]:
    """The values that occur in a column."""
    found: dict[Category, None] = {}
    for _, part in _read_slices(cells, column):
        found.update(dict.fromkeys(to_category(value) for value in pd.factorize(part)[1]))
    return list(found)


def _find_values(cells: QuestionCells, column: str, wanted: str, there: list[Category]) -> np.ndarray:
    """bool [cells]: the cells whose value in the column is one of the wanted ones."""
    # try the whole text first, because a value may contain a comma
    accepted = [wanted] if wanted in map(str, there) else [value.strip() for value in wanted.split(",")]
    places = find_categories(there, accepted)
    if None in places:
        raise QueryError(
            f"{cells.path}: no cell has {column} = {accepted[places.index(None)]!r} (there are: "
            f"{name_some(sorted(map(str, there)))})."
        )
    known = {there[place] for place in places if place is not None}
    mask = np.zeros(cells.n_cells, bool)
    for start, part in _read_slices(cells, column):
        codes, values = pd.factorize(part)
        chosen = [code for code, value in enumerate(values) if to_category(value) in known]
        mask[start : start + len(codes)] = np.isin(codes, chosen)
    return mask


def _find_names(cells: QuestionCells, names: Sequence[str]) -> np.ndarray:
    wanted, found, mask = set(names), set(), np.zeros(cells.n_cells, bool)
    for start, indices in slice_cells(None, cells.n_cells):
        here = cells.read_names(indices)
        mask[start : start + len(here)] = hits = here.isin(wanted)
        found.update(here[hits])
    if missing := wanted - found:
        raise QueryError(f"{cells.path}: {len(missing)} of the cells do not exist (first: {sorted(missing)[0]!r}).")
    return mask


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
