"""How many neighbouring cells are read at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.sources.run_lengths import FEWEST_RUNS, GROUP_CELLS, choose_run, count_mixed_runs, describe_mixing


@pytest.mark.parametrize(
    ("piece_cells", "shuffled", "expected"), [(1, False, 128), (100, False, 512), (100, True, 2048), (1e6, False, 1024)]
)
def test_a_run_is_several_pieces_of_the_file(piece_cells: float, shuffled: bool, expected: int):
    assert choose_run(piece_cells, shuffled) == expected


@given(piece_cells=st.floats(0.01, 1e7), shuffled=st.booleans())
def test_a_run_is_a_power_of_two_and_enough_of_them_are_mixed(piece_cells: float, shuffled: bool):
    run = choose_run(piece_cells, shuffled)
    assert run.bit_count() == 1
    assert count_mixed_runs(run, shuffled) >= (1 if shuffled else FEWEST_RUNS)
    assert run * count_mixed_runs(run, shuffled) <= GROUP_CELLS


def test_the_mixing_is_described_as_it_is():
    assert describe_mixing(2048, 1024, 2, False) == "all 2,048 cells are mixed with each other in every epoch"
    in_order = describe_mixing(10_000, 1024, 2, False)
    assert in_order == "in the order of the source: each minibatch draws from 2 runs of 1,024 neighbouring cells"
    assert describe_mixing(10_000, 1024, 2, True).startswith("shuffled as a whole when the collection was written")
