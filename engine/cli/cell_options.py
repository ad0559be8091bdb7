"""The options with which a question chooses its cells, and where its answer goes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from atlasvi.engine.cli.answers import say_written
from atlasvi.engine.cli.arguments import CellNames, Columns, Limit, Out, Sample, Seed, Where, refuse_unused, split_names
from atlasvi.engine.cli.job_file import JobFile

if TYPE_CHECKING:  # imports torch and pandas, which `--help` does not need
    import pandas as pd

    from atlasvi.engine.queries.opened_question import OpenedQuestion


@dataclass(frozen=True)
class CellOptions:
    """Which cells a question is about."""

    cells: CellNames = None
    where: Where = None
    limit: Limit = None
    sample: Sample = None
    seed: Seed = 0
    out: Out = None
    config: JobFile = None

    def choose(self, opened: "OpenedQuestion") -> np.ndarray | None:
        """Ascending int64 indices of the chosen cells; None: all."""
        from atlasvi.engine.queries.cell_choice import choose_cells

        if self.cells is None and not self.where and self.limit is None and self.sample is None:
            return None
        return choose_cells(opened.cells, split_names(self.cells), self.where or [], self.limit, self.sample, self.seed)

    def refuse_seed(self, context: typer.Context) -> None:
        """Refuse --seed where only --sample would use it."""
        if self.sample is None:
            refuse_unused(context, ["seed"], "only --sample uses it")


@dataclass(frozen=True)
class RowOptions(CellOptions):
    """The same, for a question that is answered with a row for each cell, or several."""

    columns: Columns = None

    def write(
        self,
        opened: "OpenedQuestion",
        chosen: np.ndarray | None,
        slices: "Iterator[tuple[pd.Index, np.ndarray]]",
        names: Iterable[str],
        rows_per_cell: int = 1,
    ) -> None:
        """Write an answer about the chosen cells, in slices, with the obs columns of --columns beside its values."""
        from atlasvi.engine.queries.answer_tables import put_beside, write_table

        rows: Iterable[Any] = slices
        if wanted := split_names(self.columns):
            for name in wanted:
                opened.cells.read_column(name, 0, 0)  # raises ColumnError before anything is computed
            rows = put_beside(slices, opened.cells, chosen, wanted, rows_per_cell)
        n_rows = write_table(rows, list(names), self.out, index="cell")
        say_written(n_rows, self.out, "row" if rows_per_cell > 1 else "cell")
