"""Masks of cells, a bit each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.batches.cell_mask import CellMask


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.data())
def test_any_slice_of_a_mask_is_that_of_the_truth_values(chosen: list[bool], data):
    mask, other = CellMask.from_bools(np.array(chosen)), CellMask.from_bools(np.array(chosen)).invert()
    start = data.draw(st.integers(0, len(chosen)))
    stop = data.draw(st.integers(start, len(chosen)))
    assert mask.read(start, stop).tolist() == chosen[start:stop]
    assert other.read(start, stop).tolist() == [not one for one in chosen[start:stop]]
    assert (mask.count(), other.count(), len(mask)) == (sum(chosen), len(chosen) - sum(chosen), len(chosen))


def test_indices_in_any_order_with_repeats_make_a_mask():
    mask = CellMask.from_indices(np.array([17, 3, 3, 8]), 20)
    assert np.flatnonzero(mask.read(0, 20)).tolist() == [3, 8, 17]


def test_slices_are_written_one_after_the_other():
    mask, chosen = CellMask(21), np.random.default_rng(0).random(21) < 0.5
    for start in (16, 0, 8):
        mask.set_slice(start, chosen[start : start + 8])
    assert np.array_equal(mask.read(0, 21), chosen)


@pytest.mark.parametrize("n_cells", [0, 1, 8, 9])
def test_a_mask_takes_a_bit_a_cell(n_cells: int):
    assert CellMask(n_cells).bits.nbytes == -(-n_cells // 8)
    assert CellMask(n_cells).invert().count() == n_cells
