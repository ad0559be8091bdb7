"""The rows of an answer on their way to a file: slices of any length, which writers take in slices of equal length."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from atlasvi.engine.queries.question_cells import QueryError

BLOCK_VALUES = 2**22  # values in a row group of Parquet, or a chunk of an AnnData


class Rows(NamedTuple):
    """Some rows of a table: their names, columns of any type (obs columns, text), and columns of numbers."""

    names: pd.Index
    beside: pd.DataFrame
    values: np.ndarray  # [rows, columns]


class Table(NamedTuple):
    """A table, whose rows come slice by slice.

    row      what a row is: the name of the column of names
    columns  names of the columns of numbers
    """

    row: str
    columns: Sequence[str]
    slices: Iterable[Rows]


def split_rows(slices: Iterable[Rows], n_columns: int) -> Iterator[Rows]:
    """The same rows in slices of equal length (but the last) of about `BLOCK_VALUES` values."""
    size = max(min(BLOCK_VALUES // max(n_columns, 1), 2**16), 1)
    waiting: list[Rows] = []
    n_waiting = 0
    for rows in slices:
        waiting.append(rows)
        n_waiting += len(rows.names)
        if n_waiting >= size:
            joined = join_rows(waiting)
            for at in range(0, n_waiting - n_waiting % size, size):
                yield _take_rows(joined, slice(at, at + size))
            rest = _take_rows(joined, slice(n_waiting - n_waiting % size, None))
            waiting, n_waiting = [rest] if len(rest.names) else [], len(rest.names)
    if n_waiting:
        yield join_rows(waiting)


def join_rows(slices: Sequence[Rows]) -> Rows:
    """Several slices as one."""
    if len(slices) == 1:
        return slices[0]
    names = np.concatenate([np.asarray(rows.names, object) for rows in slices])
    beside = pd.concat([rows.beside for rows in slices], ignore_index=True)
    return Rows(pd.Index(names), beside, np.concatenate([rows.values for rows in slices]))


def check_distinct(names: Sequence[str], form: str) -> None:
    """Raise QueryError if two columns of an answer have one name in a file of this form."""
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise QueryError(
            f"Two columns of the answer have the name {repeated[0]!r} in {form}: leave one of them out, or "
            "write another form (.csv, .npz)."
        )


def _take_rows(rows: Rows, some: slice) -> Rows:
    return Rows(rows.names[some], rows.beside.iloc[some], rows.values[some])
