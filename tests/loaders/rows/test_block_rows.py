"""Rows of counts as a block holds them."""

import numpy as np
import pytest

from atlasvi.loaders.rows.block_rows import Rows, gather_rows
from tests.loaders.conftest import make_counts


@pytest.mark.parametrize("chosen", [[], [4], [7, 2, 2, 0]])
def test_chosen_rows_are_copied_in_their_order(chosen: list[int]):
    counts, wanted = make_counts(9, 30), np.array(chosen, np.int64)
    expected = counts[wanted]
    ends, indices, values = gather_rows(counts.indptr, counts.indices, counts.data, wanted)
    assert ends.tolist() == expected.indptr.tolist()
    assert indices.tolist() == expected.indices.tolist()
    assert values.tolist() == expected.data.tolist()
    block = Rows(100, counts.indptr[:-1].astype(np.int64), np.diff(counts.indptr), counts.indices, counts.data)
    copied = block.copy(wanted)
    assert (copied.first, len(copied)) == (100, len(chosen))
    assert copied.lengths.tolist() == np.diff(expected.indptr).tolist()
    assert copied.indices.tolist() == expected.indices.tolist()
    assert copied.counts.tolist() == expected.data.tolist()


def test_gathering_piece_by_piece_looks_at_each_pointer_once():
    class Counted(np.ndarray):
        looked_at = 0

        def __getitem__(self, key: np.ndarray) -> np.ndarray:
            Counted.looked_at += len(key)
            return np.asarray(self)[key]

        def __array_ufunc__(self, *args, **options):
            raise AssertionError("all pointers were read")

    counts = make_counts(1000, 5)
    pointers = counts.indptr.astype(np.int64).view(Counted)
    for at in range(0, 1000, 10):
        gather_rows(pointers, counts.indices, counts.data, np.arange(at, at + 10))
    assert Counted.looked_at == 2000
