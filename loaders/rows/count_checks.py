"""Counts must be whole, finite and not negative: they are checked where they are read, and kept in a narrow dtype."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from atlasvi.loaders.errors import CountsError

LARGEST_COUNT = 2**31 - 1
FRACTIONS = "values that are not whole numbers"

CellNames = Callable[[int], str]
"""Returns the name of a row; called only for an error, so that names are not read for every slice of counts."""


def narrowest_unsigned(largest: int) -> np.dtype:
    """The narrowest of uint8, uint16 and uint32 that holds `largest`."""
    return np.min_scalar_type(max(int(largest), 0))


def check_counts(
    matrix: sparse.csr_matrix,
    path: str,
    name_cell: CellNames,
    genes: pd.Index,
    layer: str = "X",
    layers: Sequence[str] = (),
    fractions: bool = False,
) -> sparse.csr_matrix:
    """The same matrix with its values in the narrowest unsigned dtype that holds them.

    matrix  [cells, genes] CSR, any numeric dtype
    path, name_cell  used in errors: the file, and the name of a row of the matrix
    layer, layers    used in errors: the layer that was read, and all layers of the file
    fractions  values of a float dtype may be any number from 0 and stay float32, for the normal likelihood
    Raises CountsError, naming the first cell and gene, for NaN, infinite, negative or fractional values and for
    values above 2**31 - 1.
    """
    values = matrix.data
    if fractions and values.dtype.kind == "f":
        if not (np.isfinite(values) & (values >= 0)).all():
            raise CountsError(_describe(matrix, values, path, name_cell, genes, layer, layers))
        narrow = values.astype(np.float32)
    elif len(values) == 0:
        narrow = np.empty(0, np.uint8)
    else:
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                whole = values.astype(np.int64)
            fine = whole == values  # false for NaN, for infinity (the cast overflows) and for fractions
        elif values.dtype.kind in "iu":
            whole, fine = values, None
        else:
            raise CountsError(f"{path}: {layer} holds {values.dtype} values, which are not counts.")
        low, high = int(whole.min()), int(whole.max())
        if low < 0 or high > LARGEST_COUNT or (fine is not None and not fine.all()):
            raise CountsError(_describe(matrix, values, path, name_cell, genes, layer, layers))
        narrow = whole.astype(narrowest_unsigned(high))
    # this constructor checks what is known already, and copies nothing
    return sparse.csr_matrix((narrow, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)


def round_values(matrix: sparse.csr_matrix) -> tuple[sparse.csr_matrix, int]:
    """Round each value to the nearest whole number; returns the matrix and how many values changed.

    matrix  [cells, genes] CSR, any numeric dtype; halves go to the even number, and zeros are no longer stored
    """
    if matrix.data.dtype.kind != "f":
        return matrix, 0
    whole = np.rint(matrix.data)
    n_changed = int(np.count_nonzero(whole != matrix.data) - np.count_nonzero(np.isnan(whole)))
    rounded = sparse.csr_matrix((whole, matrix.indices, matrix.indptr), shape=matrix.shape, copy=True)
    rounded.eliminate_zeros()
    return rounded, n_changed


def _describe(
    matrix: sparse.csr_matrix,
    values: np.ndarray,
    path: str,
    name_cell: CellNames,
    genes: pd.Index,
    layer: str,
    layers: Sequence[str],
) -> str:
    with np.errstate(invalid="ignore"):
        kinds = [
            ("NaN (missing) values", np.isnan(values)),
            ("infinite values", np.isinf(values)),
            ("negative values", values < 0),
            (FRACTIONS, values != np.floor(values)),
            (f"counts above {LARGEST_COUNT:,}", values.astype(np.float64) > LARGEST_COUNT),
        ]
    found, where = next((name, np.flatnonzero(mask)[0]) for name, mask in kinds if mask.any())
    row = int(np.searchsorted(matrix.indptr, where, side="right")) - 1
    place = f"cell {name_cell(row)!r}, gene {str(genes[matrix.indices[where]])!r}"
    others = [name for name in layers if name != layer]
    other = (
        f"if they are in a layer, pass --layer NAME (this file has: {', '.join(others)})"
        if others
        else "this file has no other layer that could hold them"
    )
    if found == FRACTIONS:
        other += "; if a tool estimates counts as fractions (STARsolo, SoupX, salmon), ingest --round rounds them"
    value = np.format_float_positional(values[where], trim="-") if values.dtype.kind == "f" else values[where]
    return f"{path}: {layer} holds {found} (first: {value} at {place}). scVI models raw counts; {other}."


def check_no_empty_cells(row_nnz: np.ndarray, path: str, first_row: int, name_cell: CellNames) -> None:
    """Raise CountsError if a row has no counts; `row_nnz` int [cells], `first_row` the index of the first row."""
    empty = np.flatnonzero(row_nnz == 0)
    if len(empty):
        at = int(empty[0])
        raise CountsError(
            f"{path}: cell {name_cell(at)!r} (row {first_row + at}) has no counts. Filter "
            "such cells out (scanpy.pp.filter_cells(adata, min_counts=1)), or keep them: --empty-cells keep, or "
            "PATH::empty_cells=keep (ingest can also drop them)."
        )
