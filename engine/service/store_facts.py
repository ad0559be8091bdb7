"""What a service tells of its store: its size, its genes, and the values of its obs columns."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.neighbours.index_file import name_index
from atlasvi.engine.queries.question_cells import QuestionCells
from atlasvi.engine.service.answer_forms import to_json
from atlasvi.loaders.cells.coded_columns import SLICE_CELLS, code_column, slice_column

MOST_LISTED = 1_000  # genes, or values of a column
MOST_TEXTS = (
    100_000  # values of a column of text that are counted: each takes memory, and names of cells are all different
)


def tell_store(store: KeptPosterior, questions: Sequence[str]) -> dict[str, Any]:
    """Name and sizes of a store, the kinds of its obs columns, and what can be asked of it."""
    return {
        "name": Path(store.path).name,
        "version": version("atlasvi"),
        "n_cells": store.n_cells,
        "n_genes": len(store.genes),
        "n_latent": store.n_latent,
        "obs": {name: name_kind(store.read_column(name, 0, 1)) for name in store.obs_columns},
        "has_index": name_index(store.path).exists(),
        "has_embedding": store.has_embedding,
        "questions": list(questions),
    }


def name_kind(column: pd.Series) -> str:
    """What a column holds: 'category', 'text', 'truth', 'integer' or 'number'."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "category"
    kind = getattr(column.dtype, "numpy_dtype", column.dtype).kind
    return {"b": "truth", "i": "integer", "u": "integer", "f": "number"}.get(kind, "text")


def find_genes(genes: Sequence[str], pattern: str) -> dict[str, Any]:
    """The genes whose name contains a text, in upper or lower case: that name first, then those that begin with it."""
    wanted = pattern.casefold()
    hits = [k for k, gene in enumerate(genes) if wanted in gene.casefold()]
    hits.sort(key=lambda k: (genes[k] != pattern, not genes[k].casefold().startswith(wanted)))  # else in their order
    return {"n_genes": len(hits), "genes": [genes[k] for k in hits[:MOST_LISTED]]}


def tell_column(cells: QuestionCells, name: str, chosen: np.ndarray | None = None) -> dict[str, Any]:
    """The values of an obs column with their numbers of cells, most first; or of a column of numbers, the range.

    chosen  ascending int64 indices of the cells that count; None: all
    Of a column of text with more than MOST_TEXTS values none are told. Raises ColumnError if there is no such column.
    """
    first = cells.read_column(name, 0, 1)
    kind = name_kind(first)
    found: dict[str, Any] = {"column": name, "kind": kind}
    if kind in ("integer", "number"):
        return {**found, **_find_range(cells, name, chosen)}
    if kind == "text" and count_distinct(cells, name, MOST_TEXTS) > MOST_TEXTS:
        return {**found, "n_values": None, "values": [], "n_missing": None}
    coded = code_column(cells, name)
    codes = coded.codes if chosen is None else coded.codes[chosen]
    counts = np.zeros(len(coded.categories) + 1, np.int64)
    for at in range(0, len(codes), SLICE_CELLS):
        counts += np.bincount(codes[at : at + SLICE_CELLS].astype(np.int64) % len(counts), minlength=len(counts))
    order = np.argsort(-counts[:-1], kind="stable")[:MOST_LISTED]
    values = [{"value": str(coded.categories[k]), "n_cells": int(counts[k])} for k in order if counts[k]]
    return {**found, "n_values": int(np.count_nonzero(counts[:-1])), "values": values, "n_missing": int(counts[-1])}


def count_distinct(cells: QuestionCells, column: str, most: int) -> int:
    """How many values an obs column has; any number above `most` if it has more than these."""
    dtype = cells.read_column(column, 0, 1).dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return len(dtype.categories)
    found: set[Any] = set()
    for _, part in slice_column(cells, column):
        found.update(part.dropna().unique().tolist())
        if len(found) > most:
            break
    return len(found)


def _find_range(cells: QuestionCells, name: str, chosen: np.ndarray | None) -> dict[str, Any]:
    low, high, n_missing = np.inf, -np.inf, 0
    for start, part in slice_column(cells, name):
        if chosen is not None:
            at, end = np.searchsorted(chosen, [start, start + len(part)])
            part = part.iloc[chosen[at:end] - start]
        there = part[part.notna()]
        n_missing += len(part) - len(there)
        if len(there):
            low, high = min(low, there.min()), max(high, there.max())
    ends = [None, None] if low > high else [to_json(end.item() if hasattr(end, "item") else end) for end in (low, high)]
    return {"min": ends[0], "max": ends[1], "n_missing": n_missing}
