"""A question as every door asks it: what it is asked of, what is given with it, and its answer.

The functions behind are in this subpackage. The command line and the service ask the same `Question`s, so that names,
defaults and limits of options stand once. This file imports neither torch nor pandas, which `--help` does not need.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from atlasvi.engine.neighbours.index_file import IndexFile
    from atlasvi.engine.queries.answer_rows import Table
    from atlasvi.engine.queries.opened_question import OpenedQuestion


@dataclass(frozen=True)
class NamesOf:
    """Marks an option whose text holds names, separated by commas; a question takes a list of names too."""

    what: Literal["cells", "genes", "columns", "batches", "labels"]


@dataclass(frozen=True)
class CellsBy:
    """Marks an option whose text chooses cells by a condition; a question takes an array of indices of cells too.

    names  whether the text may be names of cells; a question then takes a list of names too
    """

    names: bool = False


@dataclass(frozen=True)
class NumberOrWord:
    """Marks an option whose text is a number or a word, such as 'observed'."""


@dataclass(frozen=True)
class OfThisMachine:
    """Marks an option that only means something where the question is answered, such as a path."""


@dataclass(frozen=True)
class Answer:
    """What a question answers: a table, whose rows may be computed only when they are read.

    n_rows   number of rows; None: it is known only at the end
    noun     what a row is, for a sentence that counts them
    note     one more sentence about the answer
    is_whole whether all rows are computed already
    said     what a person is told instead of a table of one number; None: the table
    """

    table: "Table"
    n_rows: int | None = None
    noun: str = "row"
    note: str | None = None
    is_whole: bool = False
    said: str | None = None


@dataclass(frozen=True)
class Asking:
    """What a question is asked of, and how.

    open            returns the model and the cells, opened
    open_reference  returns the minified cells alone, whatever other data was named
    given           names of the options that were given, even if with their default
    new_cells       path of new counts, for questions that compare these with the minified cells; None: there are none
    on_close        takes what must be called when the answer has been read
    progress        called with a stage, what is done of it, and the total; may raise an error to end the question
    rows            int64: indices of the cells that the question is about, besides all conditions; None: all
    index           the index of neighbours, if it is opened already
    """

    open: "Callable[[], OpenedQuestion]"
    open_reference: "Callable[[], OpenedQuestion]"
    given: Collection[str]
    on_close: Callable[[Callable[[], Any]], Any]
    progress: Callable[[str, int, int], None]
    new_cells: str | None = None
    rows: "np.ndarray | None" = None
    index: "IndexFile | None" = None

    def refuse_unused(self, names: Iterable[str], reason: str) -> None:
        """Refuse options that were given although they would have no effect. Raises QueryError, with the reason."""
        refuse(filter(self.given.__contains__, names), reason)

    def list_conditions(self, where: Sequence[str] | None) -> "list[str | np.ndarray]":
        """The conditions on cells, as `choose_cells` takes them."""
        return [*(where or []), *([] if self.rows is None else [self.rows])]


@dataclass(frozen=True)
class Question:
    """A question with a name, which `answer` answers.

    about    one sentence
    options  parameters of `answer` besides `asking`, with their defaults; annotated by typer's options, and by the
             marks above
    answer   called with an `Asking`, and the options by their names
    """

    name: str
    about: str
    options: Sequence[inspect.Parameter]
    answer: Callable[..., Answer]


def refuse(options: Iterable[str], reason: str) -> None:
    """Raise QueryError, with the reason, if there are such options, which would have no effect."""
    from atlasvi.engine.queries.question_cells import QueryError  # imports torch

    if given := ", ".join(f"--{name.replace('_', '-')}" for name in options):
        raise QueryError(f"{given} would have no effect: {reason}.")
