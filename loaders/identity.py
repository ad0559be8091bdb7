"""Random numbers that depend only on a cell's identity: the same on every machine, in any order of reading."""

import numpy as np


def mix64(values: np.ndarray, seed: int) -> np.ndarray:
    """Hash uint64 values to well-mixed uint64: the finaliser of splitmix64 (Steele et al. 2014, OOPSLA) with a seed."""
    with np.errstate(over="ignore"):
        state = np.asarray(values).astype(np.uint64) + np.uint64(
            (seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) % 2**64
        )
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state ^ (state >> np.uint64(31))


def cell_keys(source: np.ndarray | int, source_row: np.ndarray) -> np.ndarray:
    """uint64 key of each cell, from the index of its source (in the order of the sources) and its row there."""
    offset = mix64(np.atleast_1d(np.asarray(source)), seed=1)
    with np.errstate(over="ignore"):
        return mix64(np.asarray(source_row).astype(np.uint64) + offset, seed=2)
