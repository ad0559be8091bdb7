"""Stored entries as narrow counts, or None where something about them is odd."""

import numpy as np
import pytest

from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.narrowing import MOST, narrow_rows

INDPTR, INDICES, VALUES = np.array([0, 2, 2, 3]), np.array([1, 4, 0], np.int32), np.array([3, 1, 2], np.float32)


@pytest.mark.parametrize(("largest", "narrow"), [(255, np.uint8), (256, np.uint16), (2**16, np.uint32)])
@pytest.mark.parametrize("stored", [np.float32, np.float64, np.int64, np.uint32])
def test_counts_get_the_narrowest_type_that_holds_the_largest(largest: int, narrow: type, stored: type):
    values = np.array([3, largest, 2], stored)
    rows = narrow_rows(7, INDPTR, INDICES, values, 5, Buffers())
    assert rows is not None
    assert (rows.counts.dtype, rows.counts.tolist()) == (narrow, values.tolist())
    assert (rows.indices.dtype, rows.indices.tolist()) == (np.uint16, INDICES.tolist())
    assert (rows.first, rows.lengths.tolist()) == (7, [2, 0, 1])


def test_gene_indices_are_wide_where_there_are_many_genes():
    rows = narrow_rows(0, INDPTR, INDICES, VALUES, 2**16 + 1, Buffers())
    assert rows is not None
    assert rows.indices.dtype == np.int32


@pytest.mark.parametrize("value", [0.5, 0, -1, np.nan, np.inf, MOST])
def test_a_value_that_may_be_no_count_is_left_to_the_checks(value: float):
    assert narrow_rows(0, INDPTR, INDICES, np.array([3, value, 2], np.float32), 5, Buffers()) is None


@pytest.mark.parametrize("indices", [[4, 1, 0], [1, 1, 0], [1, 5, 0], [-1, 4, 0]])
def test_genes_out_of_order_twice_or_beyond_the_last_are_left_to_the_checks(indices: list[int]):
    assert narrow_rows(0, INDPTR, np.array(indices, np.int32), VALUES, 5, Buffers()) is None


@pytest.mark.parametrize("indptr", [[1, 2, 2, 3], [0, 2, 1, 3], [0, 2, 2, 4]])
def test_row_pointers_that_do_not_fit_are_left_to_the_checks(indptr: list[int]):
    assert narrow_rows(0, np.array(indptr), INDICES, VALUES, 5, Buffers()) is None
