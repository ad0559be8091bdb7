"""Write the answer of a command: one way for all questions."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atlasvi.engine.cli.arguments import split_names
from atlasvi.engine.terminal import count, say

if TYPE_CHECKING:  # pandas takes half a second, and `--help` does not need it
    import numpy as np
    import pandas as pd

    from atlasvi.engine.queries.opened_question import OpenedQuestion


def write_slices(
    slices: "Iterator[tuple[pd.Index, np.ndarray]]",
    columns: Iterable[str],
    out: Path | None,
    index: str = "cell",
    *,
    beside: "tuple[OpenedQuestion, np.ndarray | None, str | None] | None" = None,
    rows_per_cell: int = 1,
) -> None:
    """Write an answer that comes in slices (see `answer_tables.write_table`), and say how many rows it has.

    beside         of an answer about cells: the question, the chosen cells, and the names of obs columns to put beside
                   the values
    rows_per_cell  how many rows each cell has
    """
    from atlasvi.engine.queries.answer_rows import Rows
    from atlasvi.engine.queries.answer_tables import put_beside, write_table

    rows: Iterable[tuple[pd.Index, np.ndarray] | Rows] = slices
    if beside is not None:
        opened, chosen, names = beside
        if wanted := split_names(names):
            for name in wanted:
                opened.cells.read_column(name, 0, 0)  # raises ColumnError before anything is computed
            rows = put_beside(slices, opened.cells, chosen, wanted, rows_per_cell)
    n = write_table(rows, list(columns), out, index=index)
    say_written(n, out, "row" if rows_per_cell > 1 else index)


def write_whole_table(table: "pd.DataFrame", index: str, out: Path | None, noun: str = "row") -> None:
    """Write an answer that is one table, and say how many rows it has."""
    from atlasvi.engine.queries.answer_tables import write_frame

    say_written(write_frame(table, index, out), out, noun)


def say_written(rows: int, out: Path | None, noun: str) -> None:
    """Say where an answer is, if it is in a file."""
    if out is not None:
        say(f"{out}: {count(rows, noun)}.")
