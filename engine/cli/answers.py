"""What the commands of `atlasvi query` answer: one way for all questions."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from atlasvi.engine.queries.question import Answer
from atlasvi.engine.terminal import count, say

if TYPE_CHECKING:  # pandas takes half a second, and `--help` does not need it
    import numpy as np
    import pandas as pd


def answer_slices(
    slices: "Iterable[tuple[pd.Index, np.ndarray]]",
    columns: Iterable[str],
    row: str,
    n_rows: int | None = None,
    noun: str | None = None,
) -> Answer:
    """An answer that comes in slices of (names of rows, values [rows, columns]), or of `Rows`.

    row   what a row is: the name of the column of names; noun: the word for it in a sentence, if that is another
    """
    from atlasvi.engine.queries.answer_tables import make_table

    return Answer(make_table(slices, list(columns), row), n_rows, noun or row)


def answer_frame(table: "pd.DataFrame", row: str, noun: str = "row") -> Answer:
    """An answer that is one table, computed already."""
    from atlasvi.engine.queries.answer_tables import make_frames_table

    return Answer(make_frames_table(iter([table]), row), len(table), noun, is_whole=True)


def answer_frames(
    tables: "Iterator[pd.DataFrame]", row: str, noun: str = "row", n_rows: int | None = None, note: str | None = None
) -> Answer:
    """An answer that is a table in slices of rows."""
    from atlasvi.engine.queries.answer_tables import make_frames_table

    return Answer(make_frames_table(tables, row), n_rows, noun, note)


def answer_number(number: int, name: str) -> Answer:
    """An answer that is one number; `name` says of what."""
    import pandas as pd

    table = pd.DataFrame({name: [number]}, index=pd.Index(["number"], name="what"))
    return Answer(answer_frame(table, "what").table, 1, is_whole=True, said=str(number))


def write_answer(answer: Answer, out: Path | None) -> None:
    """Write an answer to a file, or to the screen, and say where it is, if it is in a file."""
    from atlasvi.engine.queries.answer_tables import write_answer as write

    if out is None and answer.said is not None:
        say(answer.said)
        return
    n_rows = write(answer.table, out)
    if out is not None:
        say(f"{out}: {count(n_rows, answer.noun)}.{f' {answer.note}' if answer.note else ''}")
