"""Rows as every source returns them, whatever order and types they are stored in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.rows.csr import canonical_csr, csr_from_entries, to_numbers


def test_genes_are_sorted_and_stored_zeros_left_out():
    rows = canonical_csr(np.array([5.0, 0.0, 7.0]), np.array([4, 2, 1]), np.array([0, 2, 3]), 5)
    assert rows.has_canonical_format
    assert (rows.data.tolist(), rows.indices.tolist(), rows.indptr.tolist()) == ([5, 7], [4, 1], [0, 1, 2])


def test_duplicates_of_a_narrow_type_are_summed_without_wrapping_around():
    rows = canonical_csr(np.array([200, 100], np.uint8), np.array([3, 3]), np.array([0, 2]), 5)
    assert rows.toarray().tolist() == [[0, 0, 0, 300, 0]]


def test_nan_is_kept_for_the_checks_after_it():
    assert np.isnan(canonical_csr(np.array([np.nan]), np.array([0]), np.array([0, 1]), 1).data).tolist() == [True]


@pytest.mark.parametrize(
    ("indices", "indptr", "message"),
    [
        ([0, 5], [0, 2], "outside 0 to 4"),
        ([-1, 0], [0, 2], "outside 0 to 4"),
        ([0, 1], [1, 2], "row pointers"),
        ([0, 1], [0, 3], "row pointers"),
        ([0, 1], [0, 2, 1, 2], "row pointers"),
        ([0], [0, 2], "row pointers"),
    ],
)
def test_arrays_that_are_no_matrix_are_refused(indices: list[int], indptr: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        canonical_csr(np.ones(2), np.array(indices), np.array(indptr), 5)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("?", "u1"), (">i4", "i4"), (">f8", "f8"), ("f2", "f4"), (np.longdouble, "f8"), ("u2", "u2"), ("f4", "f4")],
)
def test_numbers_of_any_type_become_those_that_can_be_computed_with(stored: str, expected: str):
    numbers = to_numbers(np.array([0, 1], dtype=stored), "a.h5ad", "X")
    assert numbers.dtype == np.dtype(expected)
    assert numbers.dtype.isnative
    assert numbers.tolist() == [0, 1]


@pytest.mark.parametrize("stored", ["U3", "S3", "c8"])
def test_what_is_no_number_is_refused_with_the_name_of_the_matrix(stored: str):
    with pytest.raises(SourceError, match=r"a\.h5ad: X holds values of type .* --layer"):
        to_numbers(np.array([0, 1]).astype(stored), "a.h5ad", "X")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 9)), max_size=30))
def test_entries_in_any_order_are_the_matrix_that_scipy_makes_of_them(entries: list[tuple[int, int, int]]):
    rows, cols, values = np.array(entries, dtype=np.int64).reshape(-1, 3).T
    found = canonical_csr(*csr_from_entries(rows, cols, values, 4, 5), 5)
    assert np.array_equal(found.toarray(), sparse.coo_matrix((values, (rows, cols)), (4, 5)).toarray())
