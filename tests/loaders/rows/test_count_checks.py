import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from atlasvi.loaders.errors import CountsError
from atlasvi.loaders.rows.count_checks import check_counts, check_no_empty_cells

CELLS, GENES = pd.Index(["AAAC-1", "AAAG-1"]), pd.Index(["CD3E", "CD8A", "LYZ"])


def check(values: list[list[float]], dtype: type = np.float32, layers: tuple[str, ...] = ()) -> sparse.csr_matrix:
    return check_counts(
        sparse.csr_matrix(np.array(values, dtype)), "atlas3.h5ad", CELLS.__getitem__, GENES, "X", ("X", *layers)
    )


@pytest.mark.parametrize(
    ("largest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)]
)
@pytest.mark.parametrize("stored_as", [np.float32, np.float64, np.int32, np.int64, np.uint32])
def test_counts_are_kept_exactly_in_the_narrowest_type_that_holds_them(largest, dtype, stored_as):
    counts = check([[0, largest, 1], [2, 0, 0]], stored_as)
    assert counts.dtype == dtype
    assert counts.toarray().tolist() == [[0, largest, 1], [2, 0, 0]]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1.386, "values that are not whole numbers (first: 1.386 at cell 'AAAG-1', gene 'CD8A')"),
        (-1, "negative values (first: -1"),
        (float("nan"), "NaN (missing) values"),
        (float("inf"), "infinite values"),
        (2.0**31, "counts above 2,147,483,647"),
    ],
)
def test_what_is_no_count_is_refused_with_its_place(value, found):
    with pytest.raises(CountsError) as error:
        check([[1, 0, 2], [0, value, 0]], layers=("counts", "log1p"))
    assert str(error.value).startswith(f"atlas3.h5ad: X holds {found}")
    assert "pass --layer NAME (this file has: counts, log1p)" in str(error.value)


def test_a_matrix_without_counts_passes():
    assert check([[0, 0, 0], [0, 0, 0]]).nnz == 0


def test_an_empty_cell_is_named_with_its_row():
    with pytest.raises(CountsError, match=r"a.h5ad: cell 'AAAG-1' \(row 41\) has no counts.* PATH::empty_cells=keep"):
        check_no_empty_cells(np.array([3, 0]), "a.h5ad", 40, CELLS.__getitem__)


def test_a_file_without_other_layers_says_so():
    with pytest.raises(CountsError, match="this file has no other layer that could hold them"):
        check([[0.5, 0, 0], [0, 0, 0]])
