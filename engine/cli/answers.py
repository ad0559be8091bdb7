"""Write the answer of a command: one way for all questions."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from atlasvi.engine.terminal import count, say

if TYPE_CHECKING:  # pandas takes half a second, and `--help` does not need it
    import numpy as np
    import pandas as pd


def write_slices(
    slices: "Iterable[tuple[pd.Index, np.ndarray]]", columns: Iterable[str], out: Path | None, index: str
) -> None:
    """Write an answer that comes in slices (see `answer_tables.write_table`), and say how many rows it has."""
    from atlasvi.engine.queries.answer_tables import write_table

    say_written(write_table(slices, list(columns), out, index=index), out, index)


def write_whole_table(table: "pd.DataFrame", index: str, out: Path | None, noun: str = "row") -> None:
    """Write an answer that is one table, and say how many rows it has."""
    from atlasvi.engine.queries.answer_tables import write_frame

    say_written(write_frame(table, index, out), out, noun)


def say_written(rows: int, out: Path | None, noun: str) -> None:
    """Say where an answer is, if it is in a file."""
    if out is not None:
        say(f"{out}: {count(rows, noun)}.")
