"""Which cells of the data a model was trained on, and which were held out: as far as the model says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atlasvi.engine.card.measured_parts import NO_PART
from atlasvi.engine.card.model_card import Note
from atlasvi.engine.model.run_files import CONFIG
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.question_cells import CountedCells, QueryError, QuestionCells
from atlasvi.engine.training.fingerprint import is_data_of_run
from atlasvi.engine.training.resuming import read_data_spec, read_saved
from atlasvi.engine.training.splits import SPLIT_BY_INDEX, split_by_column, split_by_hash
from atlasvi.loaders.batches.cell_mask import SLICE_CELLS

NAMES = {"train": "training", "validation": "validation", "test": "test"}
UNSPLIT = "cells"
BY_HASH, BY_COLUMN, BY_INDEX = "hash of each cell's identity", "a column of obs", "indices saved with the model"
PART_NAMES = (*NAMES.values(), UNSPLIT)


@dataclass
class CardSplit:
    """The part of each cell.

    codes  uint8 [cells], indices into PART_NAMES; NO_PART for a cell in no part
    how    where the parts come from, as plain values, with the number of cells of each
    """

    codes: np.ndarray
    how: dict[str, Any]
    notes: list[Note] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of cells of each part that has some."""
        found = {name: int(np.count_nonzero(self.codes == code)) for code, name in enumerate(PART_NAMES)}
        return {name: n for name, n in found.items() if n}


def split_cells(run: TrainedRun, cells: QuestionCells, known: Mapping[str, Any] | None = None) -> CardSplit:
    """The parts of the cells of the data that the model was trained on.

    known  how an earlier card of the model split them (`CardSplit.how`); None: as the run says
    Raises QueryError if this is not the data of the run, or if it changed since.
    """
    if not isinstance(cells, CountedCells):
        return _without_split(cells, "Minified data does not say")
    ours = run.path is not None and (run.path / CONFIG).is_file()
    if ours:
        assert run.path is not None
        saved = read_saved(run.path)
        began_with = read_data_spec(run.path, saved)
        if not is_data_of_run(saved, began_with, cells.data):
            raise QueryError(
                f"{cells.path}: this is not the data that {run.path} was trained on ({began_with}), or it has changed "
                "since: a card describes a run by its own data. Give that data as it was then, or train again."
            )
        if known is None:
            fraction = saved["settings"]["validation_fraction"]
            known = {"by": BY_HASH, "validation_fraction": fraction, "seed": int(saved.get("seed") or 0)}
            if (column := saved.get("split_column")) is not None:
                known = {"by": BY_INDEX if column == SPLIT_BY_INDEX else BY_COLUMN, "column": column}
    if run.split:
        return _split_by_indices(run, cells)
    by = None if known is None else known.get("by")
    if known is None or by not in (BY_HASH, BY_COLUMN):
        return _without_split(cells, "The model does not say")
    if by == BY_HASH:
        how = {name: known[name] for name in ("by", "validation_fraction", "seed")}
        split = split_by_hash(cells.data, how["validation_fraction"], how["seed"])
    else:
        how = {name: known[name] for name in ("by", "column")}
        split = split_by_column(cells.data, how["column"], needs_validation=False)
    codes = np.full(cells.n_cells, NO_PART, np.uint8)
    for code, name in enumerate(NAMES):
        for start in range(0, cells.n_cells, SLICE_CELLS):
            stop = min(start + SLICE_CELLS, cells.n_cells)
            codes[start:stop][getattr(split, name).read(start, stop)] = code
    return _describe(CardSplit(codes, how))


def _split_by_indices(run: TrainedRun, cells: QuestionCells) -> CardSplit:
    """By the indices that were saved with the model, if the data has as many cells as these."""
    n_known = sum(map(len, run.split.values()))
    largest = max((int(part.max()) for part in run.split.values() if len(part)), default=-1)
    if largest >= cells.n_cells or n_known > cells.n_cells:
        return _without_split(
            cells,
            f"The model was split into {n_known:,} cells by their indices and the data has {cells.n_cells:,}, so it is "
            "other data, which does not say",
        )
    codes = np.full(cells.n_cells, NO_PART, np.uint8)
    for code, name in enumerate(NAMES):
        codes[run.split.get(name, np.zeros(0, np.int64))] = code
    return _describe(CardSplit(codes, {"by": BY_INDEX}))


def _without_split(cells: QuestionCells, reason: str) -> CardSplit:
    note = Note("parts", f"{reason} which cells it was trained on: the figures are of all cells together.")
    codes = np.full(cells.n_cells, PART_NAMES.index(UNSPLIT), np.uint8)
    return CardSplit(codes, {"by": "unknown", "all": cells.n_cells}, [note])


def _describe(split: CardSplit) -> CardSplit:
    sizes = split.sizes
    split.how.update(sizes)
    if "validation" not in sizes:
        split.notes.append(
            Note("validation", "No cell was held out for validation: the figures of training cells are optimistic.")
        )
    left_out = int(np.count_nonzero(split.codes == NO_PART))
    if left_out:
        split.notes.append(Note("parts", f"{left_out:,} cells are in no part, and are left out."))
    return split
