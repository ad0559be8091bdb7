"""Columns of `obs` as the integer codes that a model takes."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from atlasvi.loaders.cells import CellData
from atlasvi.loaders.errors import ColumnError

if TYPE_CHECKING:
    from atlasvi.engine.runs import TrainedRun


def read_categories(data: CellData, key: str) -> tuple[np.ndarray, list[str]]:
    """An obs column as integer codes, as narrow as they come, and the names they stand for; unused ones are left out.

    Raises ColumnError if the column is not there (naming those that are) or has missing values.
    """
    values = data.read_column(key)
    if values.isna().any():
        raise ColumnError(
            f"{data.path}: obs column {key!r} has missing values ({int(values.isna().sum()):,} cells, first: cell "
            f"{int(np.argmax(values.isna()))}): fill them in, or drop those cells."
        )
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype("category")
    values = values.cat.remove_unused_categories()
    return values.cat.codes.to_numpy(), [str(name) for name in values.cat.categories]


def read_batches(data: CellData, key: str) -> tuple[np.ndarray, list[str]]:
    """The batches to correct for, as codes and names. Raises ColumnError if there is but one, too."""
    codes, categories = read_categories(data, key)
    if len(categories) == 1:
        raise ColumnError(
            f"{data.path}: obs column {key!r} has one value ({categories[0]!r}), so there are no batches to correct "
            "for: leave --batch-key out, or name another column."
        )
    return codes, categories


def batch_codes(run: "TrainedRun", data: CellData) -> np.ndarray:
    """int64 batch of each cell as the model counts them. Raises ColumnError for a batch that it was not trained on."""
    assert run.batch_key is not None
    values = data.read_column(run.batch_key)
    codes = pd.Index(run.batch_categories).get_indexer(pd.Index(values.astype(str)))
    if (codes < 0).any():
        unknown = values[int(np.flatnonzero(codes < 0)[0])]
        raise ColumnError(
            f"{data.path}: obs column {run.batch_key!r} holds {str(unknown)!r}, which is none of the batches that the "
            f"model was trained on ({', '.join(run.batch_categories[:8])}): leave those cells out."
        )
    return codes.astype(np.int64)
