import time

import numba
import numpy as np

from atlasvi.kernels.compiling import watch_compilation


def make_function():
    """A function that numba must compile anew, and one that it calls."""

    @numba.njit
    def double(values):
        return values * 2

    @numba.njit
    def total(values):
        return double(values).sum()

    return total


def test_the_clock_runs_while_numba_compiles_and_announces_it_once():
    said = []
    total = make_function()
    began = time.monotonic()
    with watch_compilation(lambda: said.append(time.monotonic())) as clock:
        assert total(np.arange(4)) == 12
    whole = time.monotonic() - began
    assert 0 < clock.seconds <= whole
    assert len(said) == 1


def test_what_is_compiled_already_takes_no_time_and_is_not_announced():
    said = []
    total = make_function()
    total(np.arange(4))
    with watch_compilation(lambda: said.append("compiling")) as clock:
        total(np.arange(4))
    assert clock.seconds == 0
    assert said == []


def test_nothing_is_counted_after_the_block():
    with watch_compilation(lambda: None) as clock:
        pass
    make_function()(np.arange(4))
    assert clock.seconds == 0


def test_kernels_of_triton_count_unless_they_come_from_its_cache():
    class Times:
        total = 2_500_000  # microseconds

    said = []
    with watch_compilation(lambda: said.append("compiling")) as clock:
        clock.take_triton(src=None, metadata={}, metadata_group={}, times=Times, cache_hit=True)
        assert (clock.seconds, said) == (0, [])
        clock.take_triton(src=None, metadata={}, metadata_group={}, times=Times, cache_hit=False)
    assert (clock.seconds, said) == (2.5, ["compiling"])
