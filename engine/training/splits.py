"""Which cells are for training, validation and test: by a hash of each cell's identity, or by an `obs` column."""

from dataclasses import dataclass

import numpy as np

from atlasvi.loaders.batches.cell_mask import CellMask
from atlasvi.loaders.cells.coded_columns import SLICE_CELLS, slice_column
from atlasvi.loaders.cells.open_cells import CellData
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.identity import mix64

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
    """The cells of each part; some cells may be in no part."""

    train: CellMask
    validation: CellMask
    test: CellMask


def split_by_hash(data: CellData, validation_fraction: float, seed: int) -> Split:
    """Hold out a proportion of the cells, wherever they are in the file; the same cells for the same seed.

    The hash is of a cell's source and row, so a cell store and the file that it came from have the same split.
    """
    bound, held_out = np.uint64(min(validation_fraction * 2**64, 2**64 - 1)), CellMask(data.n_cells)
    lowest, lowest_cell = np.uint64(2**64 - 1), 0
    for start in range(0, data.n_cells, SLICE_CELLS):
        hashes = mix64(data.split_keys(start, min(start + SLICE_CELLS, data.n_cells)), seed)
        held_out.set_slice(start, hashes < bound)
        if hashes.min() < lowest:
            lowest, lowest_cell = hashes.min(), start + int(hashes.argmin())
    n_held_out = held_out.count()
    if validation_fraction > 0 and not n_held_out:  # with few cells no hash may be low enough: take the lowest
        held_out, n_held_out = CellMask.from_indices(np.array([lowest_cell]), data.n_cells), 1
    if n_held_out == data.n_cells:
        raise ColumnError(f"{data.path}: {data.n_cells} cells are too few to hold some out: set validation_fraction=0.")
    return Split(held_out.invert(), held_out, CellMask(data.n_cells))


def split_by_column(data: CellData, column: str, needs_validation: bool = True) -> Split:
    """Read the split from an `obs` column that has train, validation or test for each cell.

    needs_validation  False: validation cells may be missing
    Raises ColumnError if the column is missing, has other values, or no training or (where needed) validation cells.
    """
    split = Split(*(CellMask(data.n_cells) for _ in range(3)))
    for start, values in slice_column(data, column):
        if values.isna().any():
            raise ColumnError(
                f"{data.path}: obs column {column!r} has missing values (first: cell "
                f"{start + int(np.argmax(values.isna()))}): it must hold train, validation or test for each cell."
            )
        names = values.astype(str).str.lower().map(NAMES)
        if names.isna().any():
            other = values[names.isna()].iloc[0]
            raise ColumnError(
                f"{data.path}: obs column {column!r} holds {str(other)!r}; as a split it must hold train, validation "
                "(or val, valid, holdout) or test for each cell."
            )
        for part in ("train", "validation", "test"):
            getattr(split, part).set_slice(start, (names == part).to_numpy())
    for part in ("train", *(["validation"] if needs_validation else [])):
        if not getattr(split, part).count():
            raise ColumnError(f"{data.path}: obs column {column!r} has no cell with {part!r}.")
    return split
