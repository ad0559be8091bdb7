"""The options with which a question chooses its cells, and columns beside its answer."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlasvi.engine.cli.answers import answer_slices
from atlasvi.engine.cli.arguments import CellNames, Columns, Limit, Sample, Seed, Where, split_names
from atlasvi.engine.queries.question import Answer, Asking

if TYPE_CHECKING:  # imports torch and pandas, which `--help` does not need
    import pandas as pd

    from atlasvi.engine.queries.opened_question import OpenedQuestion
    from atlasvi.engine.queries.question_cells import QuestionCells


@dataclass(frozen=True)
class CellOptions:
    """Which cells a question is about."""

    cells: CellNames = None
    where: Where = None
    limit: Limit = None
    sample: Sample = None
    seed: Seed = 0

    def choose(self, asking: Asking) -> np.ndarray | None:
        """Ascending int64 indices of the chosen cells; None: all."""
        return self.choose_from(lambda: asking.open().cells, asking.list_conditions(self.where))

    def choose_from(
        self, open_cells: "Callable[[], QuestionCells]", conditions: "list[str | np.ndarray]"
    ) -> np.ndarray | None:
        """The same, with the conditions of --where and others; cells are opened if there is something to choose."""
        from atlasvi.engine.queries.cell_choice import choose_cells

        if self.cells is None and not conditions and self.limit is None and self.sample is None:
            return None
        return choose_cells(open_cells(), split_names(self.cells), conditions, self.limit, self.sample, self.seed)

    def open_without_draws(self, asking: Asking) -> "tuple[OpenedQuestion, np.ndarray | None]":
        """What is asked, opened, and the chosen cells, for an answer that draws nothing: only --sample uses --seed."""
        if self.sample is None:
            asking.refuse_unused(["seed"], "only --sample uses it")
        return asking.open(), self.choose(asking)


@dataclass(frozen=True)
class RowOptions(CellOptions):
    """The same, for a question that is answered with a row for each cell, or several."""

    columns: Columns = None

    def answer(
        self,
        asking: Asking,
        chosen: np.ndarray | None,
        slices: "Iterator[tuple[pd.Index, np.ndarray]]",
        names: Iterable[str],
        rows_per_cell: int = 1,
    ) -> Answer:
        """An answer about the chosen cells, in slices, with the obs columns of --columns beside its values."""
        from atlasvi.engine.queries.answer_tables import put_beside

        cells = asking.open().cells
        rows: Iterable[Any] = slices
        if wanted := split_names(self.columns):
            for name in wanted:
                cells.read_column(name, 0, 0)  # raises ColumnError before anything is computed
            rows = put_beside(slices, cells, chosen, wanted, rows_per_cell)
        n_rows = (cells.n_cells if chosen is None else len(chosen)) * rows_per_cell
        return answer_slices(rows, names, "cell", n_rows, noun="row" if rows_per_cell > 1 else "cell")
