"""Random numbers of a cell's identity: the order of stores and the split of runs depend on them for ever."""

import numpy as np
import pytest

from atlasvi.loaders.identity import cell_keys, mix64


def splitmix64(value: int, seed: int) -> int:
    """The same in Python's integers."""
    state = (value + seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**40])
def test_numbers_are_those_of_splitmix64(seed: int):
    values = np.array([0, 1, 2, 2**63, 2**64 - 1], np.uint64)
    assert mix64(values, seed).tolist() == [splitmix64(int(value), seed) for value in values]


def test_keys_are_those_of_every_store_and_run_so_far():
    assert cell_keys(0, np.arange(3)).tolist() == [splitmix64((row + splitmix64(0, 1)) % 2**64, 2) for row in range(3)]


def test_cells_of_several_sources_have_keys_of_their_own():
    sources, rows = np.repeat(np.arange(5), 2000), np.tile(np.arange(2000), 5)
    keys = cell_keys(sources, rows)
    assert len(np.unique(keys)) == 10_000
    assert np.array_equal(keys[2000:4000], cell_keys(1, np.arange(2000)))
    assert abs((keys / 2**64).mean() - 0.5) < 0.02
