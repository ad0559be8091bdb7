"""A question as every door asks it: what it is asked of, what is given with it, and its answer.

The functions behind are in this subpackage. The command line and the service ask the same `Question`s, so that names,
defaults and limits of options stand once. This file imports neither torch nor pandas, which `--help` does not need.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atlasvi.loaders.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

    from atlasvi.engine.neighbours.index_file import IndexFile
    from atlasvi.engine.queries.answer_rows import Table
    from atlasvi.engine.queries.opened_question import OpenedQuestion

# possessive (*+): what is quoted is never tried in other ways, which would take the cube of its length
NAME = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")*+)"?|(?P<plain>[^,]*))\s*(?:(?P<comma>,)|\Z)')


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
class GroupsBy:
    """Marks an option that names the obs columns whose values are groups of cells: each takes memory of its own."""


@dataclass(frozen=True)
class NumberOrWord:
    """Marks an option whose text is a number or a word, such as 'observed'."""


@dataclass(frozen=True)
class OfThisMachine:
    """Marks an option that only means something where the question is answered, such as a path."""


@dataclass(frozen=True)
class Answer:
    """What a question answers: a table, whose rows may be computed only when they are read.

    n_rows   number of rows, at most; None: it is known only at the end
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
    most_values     how many values an answer may hold in memory; None: as many as there is memory for
    encoder         path of a model that encodes new cells, mapped from the one in the minified store; None: that one
    """

    open: "Callable[[], OpenedQuestion]"
    open_reference: "Callable[[], OpenedQuestion]"
    given: Collection[str]
    on_close: Callable[[Callable[[], Any]], Any]
    progress: Callable[[str, int, int], None]
    new_cells: str | None = None
    rows: "np.ndarray | None" = None
    index: "IndexFile | None" = None
    most_values: int | None = None
    encoder: Path | None = None

    def check_size(self, n_values: int) -> None:
        """Raise QueryError if a question would take memory for more values than it may."""
        if self.most_values is not None and n_values > self.most_values:
            from atlasvi.engine.queries.question_cells import QueryError

            raise QueryError(
                f"This question would hold {n_values:,} values in memory, and may hold {self.most_values:,}: choose "
                "fewer cells, genes, groups or draws."
            )

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


def split_names(text: str | list[str] | None) -> list[str] | None:
    """Names separated by commas, or the lines of @FILE.

    A name in double quotes may have commas, and blanks around it, which are removed from others; "" is a quote in it.
    A list of names, which other doors than the command line take, is returned as it is.
    """
    if text is None or isinstance(text, list):
        return text
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text("utf-8-sig").splitlines()
        except OSError as error:
            raise SourceError(f"{text[1:]}: the file can't be read ({error.strerror}).") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{text[1:]}: not a text file: it must have one name per line (UTF-8).") from error
        if not (names := [line.strip() for line in lines if line.strip()]):
            raise SourceError(f"{text[1:]}: it holds no names: write one per line.")
        return names
    names, at, more = list[str](), 0, True
    while more:
        found = NAME.match(text, at)
        assert found is not None  # every text has a name, if only an empty one
        names.append(found["plain"].strip() if found["quoted"] is None else found["quoted"].replace('""', '"'))
        at, more = found.end(), bool(found["comma"])
    return names
