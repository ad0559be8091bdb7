"""Which cells are for training, validation and test: by a hash of each cell's identity, or by an `obs` column."""

from dataclasses import dataclass

import numpy as np

from atlasvi.loaders.cells.open_cells import CellData
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.identity import mix64

SLICE_CELLS = 2**17
SPLIT_BY_INDEX = "_atlasvi_part"  # the obs column that SCVI.train adds: the part of each cell, chosen by its index
NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "holdout": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Split:
    """Masks, bool [cells] each; some cells may be in no part."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_by_hash(data: CellData, validation_fraction: float, seed: int) -> Split:
    """Hold out a proportion of the cells, wherever they are in the file; the same cells for the same seed.

    The hash is of a cell's source and row, so a cell store and the file that it came from have the same split.
    """
    bound, held_out = np.uint64(min(validation_fraction * 2**64, 2**64 - 1)), np.empty(data.n_cells, bool)
    for start in range(0, data.n_cells, SLICE_CELLS):
        stop = min(start + SLICE_CELLS, data.n_cells)
        held_out[start:stop] = mix64(data.split_keys(start, stop), seed) < bound
    if validation_fraction > 0 and not held_out.any():  # with few cells no hash may be low enough: take the lowest
        held_out[np.argmin(mix64(data.split_keys(0, data.n_cells), seed))] = True
    if held_out.all():
        raise ColumnError(f"{data.path}: {data.n_cells} cells are too few to hold some out: set validation_fraction=0.")
    return Split(~held_out, held_out, np.zeros(data.n_cells, bool))


def split_by_column(data: CellData, column: str, needs_validation: bool = True) -> Split:
    """Read the split from an `obs` column that has train, validation or test for each cell.

    needs_validation  False: validation cells may be missing
    Raises ColumnError if the column is missing, has other values, or no training or (where needed) validation cells.
    """
    values = data.read_column(column)
    if values.isna().any():
        raise ColumnError(
            f"{data.path}: obs column {column!r} has missing values (first: cell {int(np.argmax(values.isna()))}): it "
            "must hold train, validation or test for each cell."
        )
    names = values.astype(str).str.lower().map(NAMES)
    if names.isna().any():
        other = values[names.isna()].iloc[0]
        raise ColumnError(
            f"{data.path}: obs column {column!r} holds {str(other)!r}; as a split it must hold train, validation (or "
            "val, valid, holdout) or test for each cell."
        )
    split = Split(*((names == part).to_numpy() for part in ("train", "validation", "test")))
    for part in ("train", *(["validation"] if needs_validation else [])):
        if not getattr(split, part).any():
            raise ColumnError(f"{data.path}: obs column {column!r} has no cell with {part!r}.")
    return split
