import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.arrays.decoding import count_descents
from atlasvi.loaders.rows.row_checks import check_four_byte_counts, check_genes, check_pointers


@given(rows=st.lists(st.lists(st.integers(-1, 6), max_size=5), min_size=1, max_size=8))
def test_rows_pass_if_and_only_if_each_ascends_within_the_genes(rows):
    indptr = np.cumsum([0, *map(len, rows)])
    genes = np.array([gene for row in rows for gene in row], np.int32)
    is_right = all(row == sorted(set(row)) and set(row) <= set(range(6)) for row in rows)
    descents = count_descents(genes, 0, len(genes))
    if is_right:
        check_genes(indptr, genes, 6, descents)
    else:
        with pytest.raises(ValueError, match=r"do not ascend|outside 0 to 5"):
            check_genes(indptr, genes, 6, descents)


@pytest.mark.parametrize("indptr", [[0, 5, 3, 8], [-1, 3, 5, 8], [0, 3, 5, 2**60], [0, 7, 7, 8], [2, 2, 3, 9]])
def test_pointers_that_leave_the_counts_or_hold_more_than_all_genes_are_refused(indptr):
    with pytest.raises(ValueError, match=r"row pointers|a row has"):
        check_pointers(np.array(indptr), 8, 6, 100)
    check_pointers(np.array([0, 3, 3, 8]), 8, 6, 100)


def test_counts_that_an_int32_does_not_hold_are_refused():
    check_four_byte_counts(np.array([2**31 - 1], np.uint32))
    check_four_byte_counts(np.array([255], np.uint8))
    with pytest.raises(ValueError, match="a count is above"):
        check_four_byte_counts(np.array([2**31], np.uint32))
