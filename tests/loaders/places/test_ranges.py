import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.places.ranges import merge_ranges, split_range


def test_ranges_that_lie_near_each_other_are_one_and_distant_ones_are_not():
    assert list(merge_ranges([(100, 110), (0, 5), (7, 9), (9, 9)], longest=50, near=4)) == [
        (0, 9, [1, 2]),
        (100, 110, [0]),
    ]


def test_a_run_does_not_grow_longer_than_allowed():
    assert [run[:2] for run in merge_ranges([(0, 30), (30, 60), (60, 90)], longest=60, near=4)] == [(0, 60), (60, 90)]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 60))), st.integers(1, 100), st.integers(0, 20))
def test_each_range_lies_in_the_run_that_names_it(parts: list[tuple[int, int]], longest: int, near: int):
    ranges = [(start, start + length) for start, length in parts]
    named = []
    for start, stop, members in merge_ranges(ranges, longest, near):
        assert all(start <= ranges[k][0] and ranges[k][1] <= stop for k in members)
        assert len(members) == 1 or stop - start <= longest
        named += members
    assert sorted(named) == [k for k, (start, stop) in enumerate(ranges) if stop > start]


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 100))
def test_the_parts_of_a_range_cover_it_in_order_and_are_short(start: int, length: int, longest: int):
    parts = split_range(start, start + length, longest)
    covered = np.concatenate([np.arange(low, high) for low, high in parts])
    np.testing.assert_array_equal(covered, np.arange(start, start + length))
    assert all(0 < high - low <= longest for low, high in parts)
